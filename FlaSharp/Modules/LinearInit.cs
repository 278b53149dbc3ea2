using TorchSharp;
using TorchSharp.Modules;

namespace FlaSharp.Modules;

/// <summary>What TorchSharp's <c>nn.Linear</c> does in its constructor only.</summary>
internal static class LinearInit
{
    /// <summary>Draws weight and bias anew from U(-1/sqrt(in), 1/sqrt(in)).</summary>
    public static void ResetParameters(this Linear linear)
    {
        var bound = 1 / Math.Sqrt(linear.in_features);
        torch.nn.init.uniform_(linear.weight, -bound, bound);
        if (linear.bias is { } bias)
            torch.nn.init.uniform_(bias, -bound, bound);
    }
}
