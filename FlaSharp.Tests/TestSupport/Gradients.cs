using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Runs an operation with every input as a leaf; compares outputs and all gradients with a float64 reference.</summary>
internal static class Gradients
{
    /// <summary>Outputs and gradients of a fixed weighted sum of the outputs, by name; what is missing is absent.</summary>
    public static Dictionary<string, Tensor> Of(
        Func<IReadOnlyDictionary<string, Tensor>, (Tensor output, Tensor? finalState)> operation,
        IReadOnlyDictionary<string, Tensor> inputs, ScalarType? dtype = null)
    {
        // detach().clone() keeps the strides of a view that is not contiguous in memory; to() makes the reference's copy.
        var leaves = inputs.ToDictionary(input => input.Key,
            input => (dtype is null ? input.Value.detach() : input.Value.detach().to(dtype.Value)).requires_grad_());
        var (output, finalState) = operation(leaves);
        var loss = Weighted(output, 1);
        if (finalState is not null && finalState.numel() > 0)
            loss = loss + Weighted(finalState, 2);
        loss.Backward();

        var results = new Dictionary<string, Tensor> { ["output"] = output.detach() };
        if (finalState is not null)
            results["finalState"] = finalState.detach();
        foreach (var (name, leaf) in leaves)
            if (leaf.grad is { } gradient)
                results["d" + name] = gradient;
        return results;
    }

    /// <summary>Fails unless every result of the reference is there, within the limit of outputs or of gradients.</summary>
    public static void Close(IReadOnlyDictionary<string, Tensor> actual, IReadOnlyDictionary<string, Tensor> expected,
        double outputLimit, double gradientLimit, string what)
    {
        foreach (var (name, value) in expected)
            Compare.Close(actual[name], value, name is "output" or "finalState" ? outputLimit : gradientLimit, $"{what}: {name}");
    }

    /// <summary>Fails unless all results have the same bits.</summary>
    public static void Same(IReadOnlyDictionary<string, Tensor> first, IReadOnlyDictionary<string, Tensor> second, string what)
    {
        foreach (var (name, value) in first)
            Xunit.Assert.True(value.equal(second[name]).all().ToBoolean(), $"{what}: {name} differs.");
    }

    private static Tensor Weighted(Tensor output, int seed)
    {
        // Weights that bfloat16 holds: else a rounded gradient of the output would differ from the reference's.
        var weights = randn(output.shape, generator: new Generator((ulong)seed)).bfloat16().to(float64, output.device);
        return (output.to(float64) * weights).sum();
    }
}
