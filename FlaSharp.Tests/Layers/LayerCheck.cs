using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>Compares a layer with its formulas in float64: output and the gradients of input and parameters.</summary>
internal static class LayerCheck
{
    public static void Agrees(SequenceLayer layer, Func<Tensor, Dictionary<string, Tensor>, Tensor> reference)
    {
        using var scope = NewDisposeScope();
        using (no_grad())
            foreach (var (name, parameter) in layer.named_parameters())
                if (name is "D" || name.EndsWith("norm.weight", StringComparison.Ordinal))
                    parameter.uniform_(0.5, 1.5);
        var x = randn([2, 21, layer.HiddenSize], generator: new Generator(3)).requires_grad_();
        var weighting = randn(x.shape, generator: new Generator(4));
        var y = layer.forward(x);
        y.Backward(weighting);

        var wide = x.detach().to(float64).requires_grad_();
        var weights = layer.state_dict().ToDictionary(
            entry => entry.Key, entry => entry.Value.detach().to(float64).requires_grad_());
        var expected = reference(wide, weights);
        expected.Backward(weighting.to(float64));
        Compare.Close(y, expected, 1e-5, "output");
        Compare.Close(x.grad!, wide.grad!, 2e-5, "gradient of x");
        foreach (var (name, parameter) in layer.named_parameters())
            Compare.Close(parameter.grad!, weights[name].grad!, 2e-5, $"gradient of {name}");
    }
}
