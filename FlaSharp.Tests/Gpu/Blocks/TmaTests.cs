using System.Runtime.InteropServices;
using FlaSharp.Interop;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Hopper's copies of boxes of a tensor.</summary>
public sealed class TmaTests
{
    private const int ElementBytes = 2;

    [GpuTheory]
    [InlineData(64, 64, 64)]
    [InlineData(80, 128, 128)]
    [InlineData(128, 256, 200)] // beyond the last column
    [InlineData(64, 32, 32)]
    [InlineData(8, 16, 16)]
    public void Tiles_of_a_head_with_zeros_beyond_the_tensor(int rows, int cols, int size)
    {
        Assert.SkipUnless(GpuDevice.Get(0).Target!.IsHopper, "The GPU is no Hopper.");
        using var scope = NewDisposeScope();
        var (batch, time, heads) = (2, (3 * rows / 2) + 3, 3); // the second tile ends beyond the last row
        var whole = Codes(7, 251, batch, time, heads, size + 8).to(bfloat16).cuda();
        var z = full(2 * rows, cols, float.NaN, bfloat16, device: CUDA);
        var columns = Math.Min(64, cols);
        var swizzle = columns == 64 ? TensorMapSwizzle.Bytes128
            : columns == 32 ? TensorMapSwizzle.Bytes64
            : TensorMapSwizzle.Bytes32;
        for (var b = 0; b < batch; b++)
        {
            var first = 3 * b;
            var map = TensorMap.Tiled(TensorMapType.BFloat16, TensorPointer.Of(whole),
                [(ulong)size, (ulong)heads, (ulong)time, (ulong)batch],
                [Bytes(size + 8), Bytes(heads * (size + 8)), Bytes(time * heads * (size + 8))],
                [(uint)columns, 1, (uint)rows, 1], swizzle);
            Launch(BlockKernels.CopiedTiles(rows, cols), new Parameters
            {
                Map = map,
                Z = TensorPointer.Of(z),
                Head = 1,
                Time = first,
                Batch = b,
            });
            var expected = zeros(2 * rows, cols);
            var left = Math.Min(2 * rows, time - first);
            expected.narrow(0, 0, left).narrow(1, 0, size)
                .copy_(whole[b].narrow(0, first, left).select(1, 1).narrow(1, 0, size).cpu().to(float32));
            Exact(z.cpu(), expected, $"batch row {b}");
        }
    }

    private static ulong Bytes(int elements) => (ulong)(elements * ElementBytes);

    [StructLayout(LayoutKind.Sequential, Size = 192)]
    private struct Parameters
    {
        public TensorMap Map;
        public nint Z;
        public int Head;
        public int Time;
        public int Batch;
    }
}
