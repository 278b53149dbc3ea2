using FlaSharp.Modules;
using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu;

/// <summary>The CUDA kernels of the log decays: against float64, and the module against itself on the CPU.</summary>
public sealed class DecayGateKernelTests
{
    [GpuTheory]
    [InlineData(ScalarType.Float32, 2e-6)]
    [InlineData(ScalarType.BFloat16, 4e-3)]
    [InlineData(ScalarType.Float16, 4e-3)]
    public void Matches_the_definition(ScalarType dtype, double gradientLimit)
    {
        manual_seed(1);
        foreach (var minimum in new double?[] { null, -0.5 })
            foreach (var shape in new long[][] { [1], [3, 5, 7], [2, 64, 256], [3, 1000, 2000] })
            {
                using var scope = NewDisposeScope();
                OpCheck.Agrees(i => new DecayGateCudaFunction(16, minimum).Run(i[0])[0]!, i => Definition(i[0], 16, minimum),
                    [(randn(shape).to(CUDA) * 6).to(dtype)], 2e-6, gradientLimit,
                    $"[{string.Join(", ", shape)}] from {minimum}");
            }
    }

    [GpuFact]
    public void Views_of_wider_tensors()
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        OpCheck.Agrees(i => new DecayGateCudaFunction(16, null).Run(i[0][.., 1..].transpose(0, 1))[0]!,
            i => Definition(i[0][.., 1..].transpose(0, 1), 16, null), [randn(33, 50).to(CUDA)], 2e-6, 2e-6, "transposed");
        OpCheck.Agrees(i => new DecayGateCudaFunction(16, null).Run(i[0][1..])[0]!,
            i => Definition(i[0][1..], 16, null), [randn(33, 51).to(CUDA)], 2e-6, 2e-6, "not aligned");
    }

    [GpuFact]
    public void Ends_stay_numbers_and_NaN_stays_NaN()
    {
        using var scope = NewDisposeScope();
        var x = tensor([float.NegativeInfinity, -100, 100, float.PositiveInfinity, float.NaN], device: CUDA).requires_grad_();
        var g = new DecayGateCudaFunction(2, null).Run(x)[0]!;
        g.sum().Backward();
        var (values, gradients) = (g.detach().cpu().data<float>().ToArray(), x.grad!.cpu().data<float>().ToArray());
        Assert.Equal([float.NegativeInfinity, -50, 0, 0, float.NaN], values);
        Assert.Equal([0.5f, 0.5f, 0, 0, float.NaN], gradients);
    }

    [GpuFact]
    public void The_module_gives_what_it_gives_on_the_CPU()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        using var gate = new DecayGate(24, 16, 40, 16, -0.2, true, CPU, ScalarType.Float32);
        var x = randn(2, 30, 24);
        var expected = gate.forward(x).detach();
        gate.to(CUDA);
        Compare.Close(gate.forward(x.cuda()).detach(), expected, 1e-5, "g");
    }

    private static Tensor Definition(Tensor x, double normalizer, double? minimum)
    {
        var g = nn.functional.logsigmoid(x) / normalizer;
        return minimum is { } least ? g.clamp_min(least) : g;
    }
}
