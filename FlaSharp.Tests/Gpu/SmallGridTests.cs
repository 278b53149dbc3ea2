using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>
/// A few small calls that reach every CUDA kernel: what compute-sanitizer watches (eng/record-gpu-run.py --sanitizers).
/// </summary>
public sealed class SmallGridTests
{
    private static readonly int[] s_offsets = [0, 17, 17, 100, 130];

    [GpuTheory]
    [InlineData(7, 13, ScalarType.BFloat16)]
    [InlineData(16, 8, ScalarType.BFloat16)]
    [InlineData(20, 33, ScalarType.BFloat16)]
    [InlineData(64, 64, ScalarType.BFloat16)]
    [InlineData(64, 64, ScalarType.Float16)]
    [InlineData(128, 128, ScalarType.BFloat16)]
    [InlineData(256, 128, ScalarType.BFloat16)]
    public void Gla_over_chunks(int keySize, int valueSize, ScalarType dtype)
    {
        var shape = new GlaCase { T = 130, K = keySize, V = valueSize, Dtype = dtype };
        shape.Check();
        (shape with { KvHeads = 1, Offsets = s_offsets, Decay = GlaCase.SomeResets }).Check();
    }

    [GpuTheory]
    [InlineData(20, 33, ScalarType.Float32)]
    [InlineData(64, 64, ScalarType.BFloat16)]
    [InlineData(300, 16, ScalarType.Float32)]
    public void Gla_step_by_step(int keySize, int valueSize, ScalarType dtype)
    {
        var shape = new GlaCase { T = 130, K = keySize, V = valueSize, Dtype = dtype };
        shape.Check(null, LinearAttentionMode.FusedRecurrent);
        (shape with { KvHeads = 1, Offsets = s_offsets }).Check(null, LinearAttentionMode.FusedRecurrent);
    }

    [GpuTheory]
    [InlineData(7, ScalarType.Float32)]
    [InlineData(64, ScalarType.BFloat16)]
    [InlineData(1025, ScalarType.BFloat16)]
    [InlineData(5000, ScalarType.Float32)]
    public void Norms(int size, ScalarType dtype)
    {
        foreach (var normBeforeGate in new[] { true, false })
        {
            using var scope = NewDisposeScope();
            manual_seed(1);
            Tensor Input(params long[] shape) => randn(shape, device: CUDA).to(dtype).requires_grad_();
            var (x, z, weight) = (Input(9, size), Input(9, size), Input(size));
            var y = FlaOps.GatedRmsNorm(x, z, weight, normBeforeGate: normBeforeGate);
            y.sum().Backward();
            foreach (var result in new[] { y, x.grad!, z.grad!, weight.grad! })
                Assert.True(result.isfinite().all().ToBoolean());
        }
    }

    [GpuFact]
    public void Decay_gates()
    {
        using var scope = NewDisposeScope();
        var x = randn(new long[] { 3, 33, 50 }, device: CUDA).requires_grad_();
        new DecayGateCudaFunction(16, null).Run(x)[0]!.sum().Backward();
        Assert.True(x.grad!.isfinite().all().ToBoolean());
    }
}
