using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Compares an operation of one output, and the gradient of every input, with a float64 computation.</summary>
public static class OpCheck
{
    /// <summary>The output and the gradients of sum(output * weighting), with a fixed random weighting.</summary>
    public static (Tensor output, Tensor[] gradients) Run(Func<Tensor[], Tensor> op, params Tensor[] inputs) =>
        Run(op, inputs, weightingDtype: null);

    /// <summary>Fails where the operation differs by more than the limits. Dtypes of outputs and gradients must be the inputs'.</summary>
    public static void Agrees(Func<Tensor[], Tensor> op, Func<Tensor[], Tensor> reference, Tensor[] inputs,
        double outputLimit, double gradientLimit, string what)
    {
        using var scope = NewDisposeScope();
        var (output, gradients) = Run(op, inputs);
        var wide = inputs.Select(input => input.to(float64)).ToArray();
        var (expected, expectedGradients) = Run(reference, wide, output.dtype); // one rounding of the weighting for both
        Compare.Close(output, expected, outputLimit, $"{what}: output");
        for (var i = 0; i < inputs.Length; i++)
        {
            Assert.Equal(inputs[i].dtype, gradients[i].dtype);
            if (expectedGradients[i].abs().max().ToDouble() < 1e-12) // all cancels: there is no scale to compare with
                Assert.True(gradients[i].abs().max().ToDouble() < 1e-6, $"{what}: gradient of input {i} is not 0");
            else
                Compare.Close(gradients[i], expectedGradients[i], gradientLimit, $"{what}: gradient of input {i}");
        }
    }

    /// <summary>Fails unless two runs give the same bits.</summary>
    public static void Repeats(Func<Tensor[], Tensor> op, params Tensor[] inputs)
    {
        using var scope = NewDisposeScope();
        var (first, firstGradients) = Run(op, inputs);
        var (second, secondGradients) = Run(op, inputs);
        Assert.True(first.equal(second).all().ToBoolean());
        for (var i = 0; i < inputs.Length; i++)
            Assert.True(firstGradients[i].equal(secondGradients[i]).all().ToBoolean(), $"gradient of input {i} differs between runs");
    }

    private static (Tensor output, Tensor[] gradients) Run(Func<Tensor[], Tensor> op, Tensor[] inputs, ScalarType? weightingDtype)
    {
        var leaves = inputs.Select(input => input.detach().clone().requires_grad_()).ToArray();
        var output = op(leaves);
        var weighting = randn(output.shape, generator: new Generator(7)).to(weightingDtype ?? output.dtype)
            .to(output.dtype, output.device);
        output.Backward(weighting);
        return (output.detach(), leaves.Select(leaf => leaf.grad ?? zeros_like(leaf)).ToArray());
    }
}
