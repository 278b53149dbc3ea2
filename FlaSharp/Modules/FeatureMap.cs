using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>The elementwise functions that an option can name: feature maps of queries and keys, and gates.</summary>
internal static class FeatureMap
{
    private static readonly Dictionary<string, Func<Tensor, Tensor>> s_maps = new()
    {
        ["relu"] = x => nn.functional.relu(x),
        ["sigmoid"] = nn.functional.sigmoid,
        ["logsigmoid"] = nn.functional.logsigmoid,
        ["silu"] = x => nn.functional.silu(x),
        ["swish"] = x => nn.functional.silu(x),
        ["sqrelu"] = x => Square(nn.functional.relu(x)),
        ["gelu"] = nn.functional.gelu,
        ["elu"] = x => nn.functional.elu(x, 1.0) + 1, // positive, as a feature map of linear attention should be
    };

    /// <summary>The function of that name.</summary>
    /// <exception cref="ArgumentException">An unknown name; the message lists the known ones.</exception>
    public static Func<Tensor, Tensor> Named(string name, string parameterName)
    {
        Guard.OneOf(name, [.. s_maps.Keys], parameterName);
        return s_maps[name];
    }

    private static Tensor Square(Tensor x) => x * x;
}
