using FlaSharp.Kernels.Norm;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>The CUDA kernels of the RMS norms: outputs and all gradients against float64, in memory that is NaN before.</summary>
public sealed class NormKernelTests
{
    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(7)]
    [InlineData(8)]
    [InlineData(64)]
    [InlineData(65)]
    [InlineData(100)]
    [InlineData(128)]
    [InlineData(256)]
    [InlineData(333)]
    [InlineData(512)]
    [InlineData(1000)]
    [InlineData(1024)]
    [InlineData(1025)]
    [InlineData(2048)]
    [InlineData(4096)]
    [InlineData(5001)]
    [InlineData(8192)]
    [InlineData(12288)]
    [InlineData(12300)]
    [InlineData(16384)]
    public void Sizes(int size)
    {
        manual_seed(1);
        foreach (var dtype in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
            foreach (var rows in new[] { 1, 50 })
            {
                var eps = size <= 2 ? 1 : 1e-5; // with one value all of the gradient but eps * r^3 cancels
                CheckPlain(size, rows, dtype, dtype, eps);
                CheckGated(size, rows, dtype, ScalarType.Float32, normBeforeGate: true, eps: eps);
                CheckGated(size, rows, dtype, dtype, normBeforeGate: false, eps: eps);
            }
    }

    [GpuTheory]
    [InlineData("swish", true)]
    [InlineData("swish", false)]
    [InlineData("sigmoid", true)]
    [InlineData("sigmoid", false)]
    public void Groups_and_activations(string activation, bool normBeforeGate)
    {
        manual_seed(2);
        foreach (var dtype in new[] { ScalarType.Float32, ScalarType.BFloat16, ScalarType.Float16 })
            foreach (var (size, groups) in new[] { (5, 3), (16, 8), (64, 2), (1200, 4), (1536, 2), (4, 2000) })
            {
                CheckGated(groups * size, 30, dtype, ScalarType.Float32, normBeforeGate, activation, groups);
                CheckGated(groups * size, 30, dtype, null, normBeforeGate, activation, groups);
            }
    }

    [GpuFact]
    public void More_rows_than_run_at_once()
    {
        manual_seed(3);
        CheckPlain(128, 70_000, ScalarType.BFloat16, ScalarType.BFloat16);
        CheckGated(32, 70_001, ScalarType.Float32, ScalarType.Float32, normBeforeGate: true);
        CheckGated(2048, 3000, ScalarType.BFloat16, ScalarType.Float32, normBeforeGate: false, groups: 2);
        CheckPlain(64, 0, ScalarType.Float32, ScalarType.Float32);
    }

    [GpuFact]
    public void Views_of_wider_tensors()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        Tensor[] inputs = [randn(5, 9, 80).to(CUDA), randn(5, 9, 80).to(CUDA), randn(64).to(CUDA)];
        foreach (var first in new[] { 8, 9 }) // the second one is not aligned
        {
            Func<Tensor, Tensor>[] views = [x => x.narrow(2, first, 64), x => x.narrow(2, first, 64).transpose(0, 1)];
            foreach (var view in views)
                OpCheck.Agrees(i => FlaOps.GatedRmsNorm(view(i[0]), view(i[1]), i[2]),
                    i => NaiveNorm.Gated(view(i[0]), view(i[1]), i[2], 1e-5, "swish", true, 64), inputs,
                    1e-5, 1e-5, $"from {first}");
        }
    }

    [GpuTheory]
    [InlineData(ScalarType.Float32, ScalarType.Float32, 1e-5)]
    [InlineData(ScalarType.BFloat16, ScalarType.BFloat16, 6e-3)]
    [InlineData(ScalarType.BFloat16, ScalarType.Float32, 4e-3)]
    [InlineData(ScalarType.Float16, ScalarType.Float32, 4e-3)]
    public void Residuals(ScalarType dtype, ScalarType stream, double limit)
    {
        Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
        manual_seed(8);
        foreach (var size in new[] { 7, 64, 1000, 1024, 4096, 12288 })
        {
            using var scope = NewDisposeScope();
            Tensor[] inputs = [Random(dtype, 40, size), Random(stream, 40, size), Random(dtype, size)];
            OpCheck.Agrees(i => Both(FlaOps.AddRmsNorm(i[0], i[1], i[2])),
                i => Both((NaiveNorm.Rms(i[0] + i[1], i[2], 1e-5), i[0] + i[1])), inputs, limit, limit, $"both outputs, {size}");
            OpCheck.Agrees(i => FlaOps.AddRmsNorm(i[0], i[1], i[2]).output,
                i => NaiveNorm.Rms(i[0] + i[1], i[2], 1e-5), inputs, limit, limit, $"the norm alone, {size}");
            OpCheck.Agrees(i => FlaOps.AddRmsNorm(i[0], i[1], i[2]).residual, i => i[0] + i[1] + 0 * i[2].sum(), inputs,
                limit, limit, $"the sum alone, {size}");
            OpCheck.Repeats(i => Both(FlaOps.AddRmsNorm(i[0], i[1], i[2])), inputs);
        }

        static Tensor Both((Tensor output, Tensor residual) of) => cat([of.output.to(of.residual.dtype), of.residual], -1);
    }

    [GpuFact]
    public void Far_gates_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        Tensor[] inputs = [randn(40, 96).to(CUDA), randn(40, 96).to(CUDA) * 60, randn(96).to(CUDA)];
        foreach (var before in new[] { true, false })
            OpCheck.Agrees(i => FlaOps.GatedRmsNorm(i[0], i[1], i[2], normBeforeGate: before),
                i => NaiveNorm.Gated(i[0], i[1], i[2], 1e-5, "swish", before, 96), inputs,
                1e-5, 1e-5, $"norm before gate {before}");
    }

    [GpuFact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        manual_seed(6);
        foreach (var size in new[] { 48, 1024, 4096 })
        {
            var (x, gate, weight) = (randn(3000, size).to(CUDA), randn(3000, size).to(CUDA), randn(size).to(CUDA));
            OpCheck.Repeats(i => FlaOps.RmsNorm(i[0], i[1]), x, weight);
            OpCheck.Repeats(i => FlaOps.GatedRmsNorm(i[0], i[1], i[2], normBeforeGate: false, groupSize: 16), x, gate, weight);
        }
    }

    [GpuFact]
    public void A_larger_line_runs_without_the_kernel()
    {
        using var scope = NewDisposeScope();
        manual_seed(70); // not that of the weights of the check: gradients of what is normalized cancel along it
        var size = RmsNormTile.MaxSize + 1;
        var (strict, message) = (CudaRuntime.Strict, CudaRuntime.Message);
        try
        {
            CudaRuntime.Message = _ => { };
            CudaRuntime.Strict = false;
            OpCheck.Agrees(i => FlaOps.RmsNorm(i[0], null), i => NaiveNorm.Rms(i[0], null, 1e-5),
                [randn(3, size).to(CUDA)], 1e-5, 1e-5, "composed");
            CudaRuntime.Strict = true;
            Assert.Throws<NotSupportedException>(() => FlaOps.RmsNorm(randn(3, size).to(CUDA), null));
        }
        finally
        {
            (CudaRuntime.Strict, CudaRuntime.Message) = (strict, message);
        }
    }

    private static void CheckPlain(int size, int rows, ScalarType dtype, ScalarType weight, double eps = 1e-5)
    {
        using var scope = NewDisposeScope();
        Check(i => FlaOps.RmsNorm(i[0], i[1], eps), i => NaiveNorm.Rms(i[0], i[1], eps),
            [Random(dtype, rows, size), Random(weight, size)], $"RmsNorm, {rows} rows of {size}, {dtype}");
    }

    private static void CheckGated(int size, int rows, ScalarType dtype, ScalarType? weight, bool normBeforeGate,
        string activation = "swish", int groups = 1, double eps = 1e-5)
    {
        using var scope = NewDisposeScope();
        Tensor[] inputs = [Random(dtype, rows, size), Random(dtype, rows, size)];
        if (weight is { } weightDtype)
            inputs = [.. inputs, Random(weightDtype, size)];
        Check(
            i => FlaOps.GatedRmsNorm(i[0], i[1], i.ElementAtOrDefault(2), eps, activation, normBeforeGate, size / groups),
            i => NaiveNorm.Gated(i[0], i[1], i.ElementAtOrDefault(2), eps, activation, normBeforeGate, size / groups), inputs,
            $"GatedRmsNorm, {rows} x {size} in {groups} groups, {activation}, norm first {normBeforeGate}, {dtype}, {weight}");
    }

    private static void Check(Func<Tensor[], Tensor> op, Func<Tensor[], Tensor> reference, Tensor[] inputs, string what)
    {
        Assert.True(CudaRuntime.IsAvailable(0, out var reason), reason);
        if (inputs[0].numel() == 0)
        {
            var (output, gradients) = OpCheck.Run(op, inputs);
            Assert.Equal(inputs[0].shape, output.shape);
            Assert.Equal(0, gradients[^1].abs().sum().ToDouble());
            return;
        }
        var limit = inputs[0].dtype == ScalarType.Float32 ? 1e-5 : 4e-3;
        OpCheck.Agrees(op, reference, inputs, limit, limit, what);
    }

    private static Tensor Random(ScalarType dtype, params long[] shape) => randn(shape).to(CUDA).to(dtype);
}
