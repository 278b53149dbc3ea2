using FlaSharp.Modules;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Modules;

public class GatedMlpTests
{
    [Fact]
    public void Computes_the_formula_and_its_gradients()
    {
        using var scope = NewDisposeScope();
        using var mlp = new GatedMlp(12, 20, bias: true);
        var w = mlp.state_dict();
        var x = randn(2, 5, 12).requires_grad_();
        mlp.forward(x).square().sum().Backward();
        var gradients = w.ToDictionary(entry => entry.Key, entry => entry.Value.grad!.clone());
        mlp.zero_grad();

        var reference = x.detach().requires_grad_();
        var gate = nn.functional.linear(reference, w["gate_proj.weight"], w["gate_proj.bias"]);
        var up = nn.functional.linear(reference, w["up_proj.weight"], w["up_proj.bias"]);
        nn.functional.linear(gate * gate.sigmoid() * up, w["down_proj.weight"], w["down_proj.bias"]).square().sum().backward();
        Compare.Close(x.grad!, reference.grad!, 1e-5, "gradient of x");
        foreach (var (name, gradient) in gradients)
            Compare.Close(gradient, w[name].grad!, 1e-5, $"gradient of {name}");
    }

    [Theory]
    [InlineData(64, 256)]
    [InlineData(96, 256)]
    [InlineData(97, 512)]
    [InlineData(1024, 2816)]
    public void The_inner_width_is_two_thirds_of_four_times_rounded_up(long hiddenSize, long expected)
    {
        using var mlp = new GatedMlp(hiddenSize, device: new Device(DeviceType.META));
        Assert.Equal(expected, mlp.state_dict()["up_proj.weight"].size(0));
    }

    [Fact]
    public void Bad_sizes_are_refused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => new GatedMlp(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => new GatedMlp(8, 0));
    }
}
