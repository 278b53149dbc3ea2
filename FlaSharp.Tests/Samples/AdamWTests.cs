using FlaSharp.Tests.TestSupport;
using TorchSharp;
using TorchSharp.Modules;
using Xunit;
using static TorchSharp.torch;
using AdamW = LanguageModel.Training.AdamW;

namespace FlaSharp.Tests.Samples;

public sealed class AdamWTests
{
    [Theory]
    [InlineData(1e9)]
    [InlineData(0.5)]
    public void Follows_the_definition_with_decay_on_matrices_only(double clip)
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(1);
        Linear model = nn.Linear(5, 3);
        using var optimizer = new AdamW(model, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, decay: 0.1);
        double[] weight = Numbers(model.weight!);
        double[] bias = Numbers(model.bias!);
        double[] state = new double[2 * (weight.Length + bias.Length)];
        Tensor x = randn(7, 5);
        for (int step = 1; step <= 5; step++)
        {
            optimizer.ZeroGradients();
            model.forward(x).square().sum().backward();
            double norm = optimizer.GatherGradients().ToDouble();
            double scale = Math.Min(1, clip / norm);
            Apply(weight, Numbers(model.weight!.grad!), state.AsSpan(0, 30), step, scale, decay: 0.1);
            Apply(bias, Numbers(model.bias!.grad!), state.AsSpan(30), step, scale, decay: 0);
            optimizer.Step(0.01, norm, clip);
        }

        Compare.Close(model.weight!.reshape(-1), tensor(weight), 1e-6, "weight");
        Compare.Close(model.bias!, tensor(bias), 1e-6, "bias");
    }

    [Fact]
    public void Keeps_fp32_weights_for_a_bf16_model()
    {
        using DisposeScope scope = NewDisposeScope();
        manual_seed(1);
        Linear model = nn.Linear(4, 4, hasBias: false, dtype: bfloat16);
        Tensor before = model.weight!.detach().clone();
        using var optimizer = new AdamW(model, decay: 0);
        for (int step = 0; step < 200; step++)
        {
            optimizer.ZeroGradients();
            model.forward(ones(1, 4, dtype: bfloat16)).sum().backward();
            optimizer.Step(1e-5, optimizer.GatherGradients().ToDouble(), clip: 1e9);
        }

        // Each step of 1e-5 is below half a bf16 ulp of most weights; without a master copy nothing would move.
        Tensor moved = (before - model.weight!).to(float32);
        Assert.Equal(200 * 1e-5, moved.mean().ToDouble(), tolerance: 4e-4);
    }

    private static void Apply(double[] values, double[] gradients, Span<double> state, int step, double scale, double decay)
    {
        Span<double> mean = state[..values.Length];
        Span<double> square = state[values.Length..];
        for (int i = 0; i < values.Length; i++)
        {
            double g = gradients[i] * scale;
            mean[i] = 0.9 * mean[i] + 0.1 * g;
            square[i] = 0.95 * square[i] + 0.05 * g * g;
            values[i] *= 1 - 0.01 * decay;
            double deviation = Math.Sqrt(square[i] / (1 - Math.Pow(0.95, step)));
            values[i] -= 0.01 * (mean[i] / (1 - Math.Pow(0.9, step))) / (deviation + 1e-8);
        }
    }

    private static double[] Numbers(Tensor tensor) => tensor.detach().to(float64).reshape(-1).data<double>().ToArray();
}
