using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The causal convolution in float64: each sequence by itself, tap by tap.</summary>
internal static class NaiveCausalConv
{
    /// <summary>x [B, T, E] (or [1, T, E] with offsets), weight [E, W], initialState [S, E, W - 1]; all float64.</summary>
    public static (Tensor output, Tensor finalState) Run(
        Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? initialState, long[]? offsets)
    {
        long channels = x.size(2), width = weight.size(1);
        var outputs = new List<Tensor>();
        var states = new List<Tensor>();
        for (var s = 0; s < (offsets is null ? x.size(0) : offsets.Length - 1); s++)
        {
            var tokens = offsets is null ? x[s] : x[0].narrow(0, offsets[s], offsets[s + 1] - offsets[s]);
            var past = initialState is null ? zeros(channels, width - 1, float64) : initialState[s];
            var row = cat([past, tokens.t()], 1); // [E, W - 1 + T]
            var sum = bias?.unsqueeze(1).expand(channels, tokens.size(0)) ?? zeros(channels, tokens.size(0), float64);
            for (var tap = 0; tap < width; tap++)
                sum = sum + row.narrow(1, tap, tokens.size(0)) * weight.narrow(1, tap, 1);
            outputs.Add(sum.t());
            states.Add(row.narrow(1, row.size(1) - (width - 1), width - 1));
        }
        var output = offsets is null ? stack(outputs) : cat(outputs, 0).unsqueeze(0);
        return (silu ? nn.functional.silu(output) : output, stack(states));
    }
}
