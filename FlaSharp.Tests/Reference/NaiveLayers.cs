using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The layers token by token, from their papers' formulas, on float64 weights of the layers' names.</summary>
public static class NaiveLayers
{
    /// <summary>h = exp(dt A) h + dt B x and y = C h + D x per channel, with dt = softplus(...), gated by silu(z).</summary>
    public static Tensor Mamba(Tensor input, Dictionary<string, Tensor> w)
    {
        var (stateSize, rank, inner) = (w["A_log"].size(1), w["dt_proj.weight"].size(1), w["D"].size(0));
        var xz = Linear(input, w, "in_proj");
        var x = Conv(xz.narrow(-1, 0, inner), w);
        var selected = Linear(x, w, "x_proj");
        var dt = nn.functional.softplus(Linear(selected.narrow(-1, 0, rank), w, "dt_proj"));
        var h = zeros([input.size(0), inner, stateSize], float64);
        var outputs = new List<Tensor>();
        for (var t = 0; t < input.size(1); t++)
        {
            var (step, token) = (dt.select(1, t).unsqueeze(-1), x.select(1, t));
            var (b, c) = (selected.select(1, t).narrow(-1, rank, stateSize),
                selected.select(1, t).narrow(-1, rank + stateSize, stateSize));
            h = (step * -w["A_log"].exp()).exp() * h + step * b.unsqueeze(1) * token.unsqueeze(-1);
            outputs.Add((h * c.unsqueeze(1)).sum(-1) + w["D"] * token);
        }
        return Linear(stack(outputs, 1) * nn.functional.silu(xz.narrow(-1, inner, inner)), w, "out_proj");
    }

    /// <summary>The same with a scalar A per head, B and C per group of heads, and a norm.</summary>
    public static Tensor Mamba2(Tensor input, Dictionary<string, Tensor> w, int headDim, int groups, int stateSize,
        (double min, double max)? limit, bool normBeforeGate)
    {
        var (batch, heads) = (input.size(0), w["A_log"].size(0));
        var inner = heads * headDim;
        var all = Linear(input, w, "in_proj");
        var z = nn.functional.silu(all.narrow(-1, 0, inner));
        var xbc = Conv(all.narrow(-1, inner, inner + 2 * groups * stateSize), w);
        var dt = nn.functional.softplus(all.narrow(-1, all.size(-1) - heads, heads) + w["dt_bias"]);
        if (limit is { } bounds)
            dt = dt.clamp(bounds.min, bounds.max);
        var d = w["D"].size(0) == heads ? w["D"].unsqueeze(-1) : w["D"].view(heads, headDim);
        var h = zeros([batch, heads, headDim, stateSize], float64);
        var outputs = new List<Tensor>();
        for (var t = 0; t < input.size(1); t++)
        {
            var token = xbc.select(1, t);
            var x = token.narrow(-1, 0, inner).view(batch, heads, headDim);
            var b = OfHeads(token.narrow(-1, inner, groups * stateSize));
            var c = OfHeads(token.narrow(-1, inner + groups * stateSize, groups * stateSize));
            var step = dt.select(1, t).unsqueeze(-1).unsqueeze(-1);
            h = (step * -w["A_log"].exp().view(heads, 1, 1)).exp() * h + step * x.unsqueeze(-1) * b.unsqueeze(2);
            outputs.Add(((h * c.unsqueeze(2)).sum(-1) + d * x).flatten(1));
        }
        var y = stack(outputs, 1);
        if (w.TryGetValue("norm.weight", out var weight))
            y = normBeforeGate ? Norm(y) * weight * z : Norm(y * z) * weight;
        else
            y *= z;
        return Linear(y, w, "out_proj");

        Tensor OfHeads(Tensor perGroup) => perGroup.view(batch, groups, stateSize).repeat_interleave(heads / groups, 1);
        Tensor Norm(Tensor value)
        {
            var grouped = value.unflatten(2, [groups, inner / groups]);
            return (grouped * (grouped.square().mean([-1], true) + 1e-5).rsqrt()).flatten(-2);
        }
    }

    /// <summary>Attention by its matrix of scores, with grouped heads and rotary positions of halves.</summary>
    public static Tensor SoftmaxAttention(Tensor input, Dictionary<string, Tensor> w, int heads, int kvHeads, int? window,
        double? theta)
    {
        var time = input.size(1);
        var (q, k, v) = (Heads("q_proj", heads), Heads("k_proj", kvHeads), Heads("v_proj", kvHeads));
        if (w.TryGetValue("q_norm.weight", out var qNorm))
            (q, k) = (Norm(q) * qNorm, Norm(k) * w["k_norm.weight"]);
        if (theta is not null)
            (q, k) = (Rotate(q), Rotate(k));
        (k, v) = (k.repeat_interleave(heads / kvHeads, 1), v.repeat_interleave(heads / kvHeads, 1));
        var seen = ones([time, time], @bool).tril();
        if (window is { } reach)
            seen = seen.logical_and(ones([time, time], @bool).triu(1 - reach));
        var scores = q.matmul(k.transpose(-1, -2)) / Math.Sqrt(q.size(-1));
        var output = scores.masked_fill(seen.logical_not(), double.NegativeInfinity).softmax(-1).matmul(v);
        return Linear(output.transpose(1, 2).flatten(2), w, "o_proj");

        Tensor Heads(string name, int count) => Linear(input, w, name).unflatten(2, [count, -1]).transpose(1, 2);
        Tensor Norm(Tensor x) => x * (x.square().mean([-1], true) + 1e-5).rsqrt();
        Tensor Rotate(Tensor x)
        {
            var half = x.size(-1) / 2;
            var frequencies = pow(theta.Value, -arange(half, float64) / half);
            var angles = arange(time, float64).unsqueeze(-1) * frequencies;
            var (first, second) = (x.narrow(-1, 0, half), x.narrow(-1, half, half));
            return cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1);
        }
    }

    private static Tensor Linear(Tensor x, Dictionary<string, Tensor> w, string name) =>
        nn.functional.linear(x, w[name + ".weight"], w.GetValueOrDefault(name + ".bias"));

    private static Tensor Conv(Tensor x, Dictionary<string, Tensor> w)
    {
        var weight = w["conv1d.weight"];
        var padded = nn.functional.pad(x.transpose(1, 2), [weight.size(2) - 1, 0]);
        return nn.functional.silu(nn.functional.conv1d(padded, weight, w.GetValueOrDefault("conv1d.bias"),
            groups: weight.size(0)).transpose(1, 2));
    }
}
