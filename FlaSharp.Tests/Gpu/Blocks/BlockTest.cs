using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>
/// Launches the kernels of <see cref="BlockKernels"/> with inputs made from indices, such that their results are exact. The
/// emulator runs the same in eng/emulator/test_blocks.py.
/// </summary>
internal static class BlockTest
{
    private static readonly KernelLibrary s_library = new(TestKernels.Compiler(CubinCache.Default.Folder));

    public static ScalarType[] HalfTypes { get; } = [ScalarType.BFloat16, ScalarType.Float16];

    public static ElementType Element(ScalarType type) =>
        type == ScalarType.BFloat16 ? ElementType.BFloat16 : ElementType.Float16;

    /// <summary>
    /// Runs one block. Its tensors are on the CPU: they are copied to the GPU before, and z and w back after it. The kernel begins
    /// at rows <paramref name="xFirst"/> of x and <paramref name="wFirst"/> of w.
    /// </summary>
    public static void Run(KernelVariant variant, Tensor? x = null, Tensor? y = null, Tensor? z = null, Tensor? w = null,
        long stride = 0, int rows = 0, int cols = 0, long xFirst = 0, long wFirst = 0)
    {
        using var scope = NewDisposeScope();
        Tensor?[] inputs = [x?.cuda(), y?.cuda(), z?.cuda(), w?.cuda()];
        var (firstX, firstW) = (xFirst == 0 ? inputs[0] : inputs[0]![xFirst], wFirst == 0 ? inputs[3] : inputs[3]![wFirst]);
        var parameters = new Parameters(TensorPointer.Of(firstX), TensorPointer.Of(inputs[1]), TensorPointer.Of(inputs[2]),
            TensorPointer.Of(firstW), stride, rows, cols);
        Launch(variant, parameters);
        z?.copy_(inputs[2]!);
        w?.copy_(inputs[3]!);
        GC.KeepAlive(inputs);
    }

    /// <summary>Runs one block, to its end.</summary>
    public static void Launch<TParameters>(KernelVariant variant, in TParameters parameters)
        where TParameters : unmanaged
    {
        var device = GpuDevice.Get(0);
        s_library.Kernel(device, variant).Launch(1, 1, 1, LaunchStream.Current, parameters);
        device.Synchronize();
    }

    /// <summary>Small whole numbers around 0, from indices.</summary>
    public static Tensor Codes(int step, int modulus, params long[] shape) =>
        ((arange(shape.Aggregate(1L, (a, b) => a * b)) * step % modulus) - (modulus / 2)).reshape(shape).to(float32);

    /// <summary>The numbers from 0 on.</summary>
    public static Tensor Indices(ScalarType type, params long[] shape) =>
        arange(shape.Aggregate(1L, (a, b) => a * b)).reshape(shape).to(type);

    /// <summary>Memory that shows what was not written.</summary>
    public static Tensor NaN(params long[] shape) => full(shape, float.NaN, float32);

    /// <summary>Fails unless all numbers are equal; NaN equals NaN.</summary>
    public static void Exact(Tensor actual, Tensor expected, string what = "")
    {
        using var scope = NewDisposeScope();
        Assert.Equal(expected.shape, actual.shape);
        var (a, e) = (actual.to(float64), expected.to(float64));
        var differs = (a != e).logical_and((a.isnan() & e.isnan()).logical_not());
        var count = differs.sum().ToInt64();
        if (count == 0)
            return;
        var first = differs.flatten().to(int32).argmax().ToInt64();
        Assert.Fail($"{what}: {count} of {a.numel()} differ, the first at {first} of [{string.Join(", ", actual.shape)}]: "
            + $"{a.flatten()[first].ToDouble()} instead of {e.flatten()[first].ToDouble()}");
    }

    private readonly record struct Parameters(nint X, nint Y, nint Z, nint W, long Stride, int Rows, int Cols);
}
