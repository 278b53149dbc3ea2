using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>Gated linear attention by its definition, token by token, in the inputs' dtype, with torch's autograd.</summary>
internal static class NaiveGla
{
    /// <summary>As FlaOps.Gla; the final state is always given.</summary>
    public static (Tensor output, Tensor finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, double? scale = null,
        Tensor? initialState = null, int[]? cuSeqlens = null, bool reverse = false)
    {
        if (cuSeqlens is null)
            return OneLength(q, k, v, g, scale, initialState, reverse);

        var parts = new List<(Tensor output, Tensor finalState)>();
        for (var s = 0; s < cuSeqlens.Length - 1; s++)
        {
            var tokens = TensorIndex.Slice(cuSeqlens[s], cuSeqlens[s + 1]);
            var state = initialState?.narrow(0, s, 1);
            parts.Add(OneLength(q[.., tokens], k[.., tokens], v[.., tokens], g[.., tokens], scale, state, reverse));
        }
        return (cat([.. parts.Select(part => part.output)], 1), cat([.. parts.Select(part => part.finalState)]));
    }

    private static (Tensor output, Tensor finalState) OneLength(
        Tensor q, Tensor k, Tensor v, Tensor g, double? scale, Tensor? initialState, bool reverse)
    {
        var (batch, time, heads, keySize) = (q.size(0), q.size(1), q.size(2), q.size(3));
        var group = heads / k.size(2);
        q = q * (scale ?? 1 / Math.Sqrt(keySize));
        (k, v, g) = (k.repeat_interleave(group, 2), v.repeat_interleave(group, 2), g.repeat_interleave(group, 2));
        var state = initialState ?? zeros([batch, heads, keySize, v.size(3)], dtype: q.dtype, device: q.device);
        var outputs = new Tensor[time];
        for (var i = 0; i < time; i++)
        {
            var t = reverse ? time - 1 - i : i;
            state = g[.., t].exp().unsqueeze(-1) * state + k[.., t].unsqueeze(-1) * v[.., t].unsqueeze(-2);
            outputs[t] = (q[.., t].unsqueeze(-1) * state).sum(-2);
        }
        return (time == 0 ? zeros([batch, 0, heads, v.size(3)], dtype: q.dtype, device: q.device) : stack(outputs, 1), state);
    }
}
