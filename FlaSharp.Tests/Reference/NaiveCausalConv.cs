using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The causal convolution in float64: each sequence by itself through torch's own convolution.</summary>
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
            if (tokens.size(0) > 0)
                outputs.Add(nn.functional.conv1d(row.unsqueeze(0), weight.unsqueeze(1), bias, groups: channels)[0].t());
            states.Add(row.narrow(1, row.size(1) - (width - 1), width - 1));
        }
        var output = offsets is null ? stack(outputs) : cat(outputs, 0).unsqueeze(0);
        return (silu ? nn.functional.silu(output) : output, stack(states));
    }
}
