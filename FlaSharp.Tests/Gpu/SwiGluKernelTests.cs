using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>The CUDA kernels of silu(gate) * up, against float64.</summary>
public sealed class SwiGluKernelTests
{
    [GpuTheory]
    [InlineData(ScalarType.Float32, 2e-6, 2e-6)]
    [InlineData(ScalarType.BFloat16, 4e-3, 5e-3)]
    [InlineData(ScalarType.Float16, 4e-3, 5e-3)]
    public void Matches_the_definition(ScalarType dtype, double limit, double gradientLimit)
    {
        manual_seed(1);
        foreach (var shape in new long[][] { [1], [3, 5, 7], [2, 64, 256], [3, 1000, 2000] })
        {
            using var scope = NewDisposeScope();
            OpCheck.Agrees(i => FlaOps.SwiGlu(i[0], i[1]), Definition,
                [(randn(shape).to(CUDA) * 6).to(dtype), randn(shape).to(CUDA).to(dtype)], limit, gradientLimit,
                $"[{string.Join(", ", shape)}]");
        }
    }

    [GpuFact]
    public void Views_of_wider_tensors()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        OpCheck.Agrees(i => FlaOps.SwiGlu(i[0][.., ..25], i[0][.., 25..]), i => Definition([i[0][.., ..25], i[0][.., 25..]]),
            [randn(33, 50).to(CUDA)], 2e-6, 2e-6, "halves");
        OpCheck.Agrees(i => FlaOps.SwiGlu(i[0][1..], i[0][..^1]), i => Definition([i[0][1..], i[0][..^1]]),
            [randn(33, 51).to(CUDA)], 2e-6, 2e-6, "not aligned");
    }

    [GpuFact]
    public void Strong_gates_stay_numbers()
    {
        using var scope = NewDisposeScope();
        var gate = tensor([-1000f, -100, 100, 1000, float.NaN], device: CUDA).requires_grad_();
        var y = FlaOps.SwiGlu(gate, ones_like(gate));
        y.sum().Backward();
        Assert.Equal([0, 0, 100, 1000, float.NaN], y.detach().cpu().data<float>().ToArray());
        Assert.Equal([0, 0, 1, 1, float.NaN], gate.grad!.cpu().data<float>().ToArray());
    }

    private static Tensor Definition(Tensor[] inputs) => nn.functional.silu(inputs[0]) * inputs[1];
}
