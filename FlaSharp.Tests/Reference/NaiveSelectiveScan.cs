using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The selective scan in float64, one sequence and one step at a time, differentiated by autograd.</summary>
internal static class NaiveSelectiveScan
{
    /// <summary>Arguments as those of the operation, in float64; b and c [B, T, G, N].</summary>
    public static (Tensor output, Tensor finalState) Run(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c, Tensor? d,
        Tensor? z, Tensor? deltaBias, bool deltaSoftplus, Tensor? initialState, long[]? offsets)
    {
        var (channels, states) = (a.size(0), a.size(1));
        var step = deltaBias is null ? delta : delta + deltaBias;
        if (deltaSoftplus)
            step = nn.functional.softplus(step);
        var perGroup = channels / b.size(2);
        var outputs = new List<Tensor>();
        var finals = new List<Tensor>();
        for (var s = 0; s < (offsets is null ? u.size(0) : offsets.Length - 1); s++)
        {
            // The decays and inputs of all steps at once: only the recurrence itself is slow here.
            Tensor Of(Tensor tensor) => offsets is null ? tensor[s] : tensor[0].narrow(0, offsets[s], offsets[s + 1] - offsets[s]);
            Tensor PerChannel(Tensor tensor) => Of(tensor).repeat_interleave(perGroup, dim: 1); // [T, E, N]
            var decay = (Of(step).unsqueeze(-1) * a).exp();
            var input = (Of(step) * Of(u)).unsqueeze(-1) * PerChannel(b);
            var h = initialState is null ? zeros(channels, states, float64) : initialState[s];
            var rows = new List<Tensor>();
            var (decays, inputs) = (decay.unbind(0), input.unbind(0));
            for (var t = 0; t < decays.Length; t++)
                rows.Add(h = decays[t] * h + inputs[t]);
            finals.Add(h);
            if (rows.Count > 0)
                outputs.Add((stack(rows) * PerChannel(c)).sum(dim: -1));
        }
        var y = offsets is null ? stack(outputs) : cat(outputs, 0).unsqueeze(0);
        if (d is not null)
            y = y + d * u;
        if (z is not null)
            y = y * nn.functional.silu(z);
        return (y, stack(finals));
    }
}
