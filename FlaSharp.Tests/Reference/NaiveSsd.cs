using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The recurrence of Mamba-2, token by token in float64, with plain autograd.</summary>
internal static class NaiveSsd
{
    /// <summary>As <c>FlaOps.Ssd</c>, with the bounds of packed sequences as numbers. Inputs of any dtype are taken to float64.</summary>
    public static (Tensor output, Tensor finalState) Run(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c,
        Tensor? d = null, Tensor? z = null, Tensor? dtBias = null, bool dtSoftplus = false, (double min, double max)? dtLimit = null,
        Tensor? initialState = null, long[]? offsets = null)
    {
        var (heads, group) = (x.size(2), x.size(2) / b.size(2));
        x = x.to(float64);
        var step = dt.to(float64);
        if (dtBias is not null)
            step = step + dtBias.to(float64);
        if (dtSoftplus)
            step = step.logaddexp(zeros(1, dtype: float64));
        if (dtLimit is var (min, max))
            step = step.clamp(min, max);
        var decay = (step * a.to(float64)).exp().unsqueeze(-1).unsqueeze(-1).unbind(1);
        var written = (step.unsqueeze(-1) * x).unsqueeze(-1).unbind(1);
        var keys = b.to(float64).repeat_interleave(group, 2).unsqueeze(-2).unbind(1);
        var queries = c.to(float64).repeat_interleave(group, 2).unsqueeze(-2).unbind(1);

        // Rows that run side by side: the batch, or one packed sequence after the other.
        var initial = initialState?.to(float64) ??
            zeros([offsets is null ? x.size(0) : offsets.Length - 1, heads, x.size(3), b.size(3)], dtype: float64);
        var (outputs, states) = (new List<Tensor>(), new List<Tensor>());
        offsets ??= [0, x.size(1)];
        var rows = initial.size(0) / (offsets.Length - 1);
        for (var s = 0; s < offsets.Length - 1; s++)
        {
            var state = initial.narrow(0, s * rows, rows);
            for (var t = offsets[s]; t < offsets[s + 1]; t++)
            {
                state = decay[t] * state + written[t] * keys[t];
                outputs.Add((state * queries[t]).sum(-1));
            }
            states.Add(state);
        }
        var output = stack(outputs, 1);
        if (d is not null)
            output = output + (d.dim() == 1 ? d.unsqueeze(-1) : d).to(float64) * x;
        if (z is not null)
            output = output * nn.functional.silu(z.to(float64));
        return (output, cat(states));
    }
}
