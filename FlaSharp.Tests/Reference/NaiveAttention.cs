using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>Softmax attention with the whole matrix of scores, one head and one row at a time, in the dtype of the inputs.</summary>
public sealed record NaiveAttention
{
    public bool Causal { get; init; } = true;

    public double? Scale { get; init; }

    public int? Window { get; init; }

    public double? Softcap { get; init; }

    public long[]? OffsetsQ { get; init; }

    public long[]? OffsetsK { get; init; }

    /// <summary>q [B, Tq, H, K], k [B, Tk, Hkv, K], v [B, Tk, Hkv, V], sinks [H]?, slopes [H]? -> [B, Tq, H, V].</summary>
    public Tensor Run(Tensor q, Tensor k, Tensor v, Tensor? sinks = null, Tensor? slopes = null)
    {
        if (OffsetsQ is not null)
        {
            var offsetsK = OffsetsK ?? OffsetsQ;
            var whole = this with { OffsetsQ = null, OffsetsK = null };
            return cat([.. Enumerable.Range(0, OffsetsQ.Length - 1).Select(s => whole.Run(
                q.narrow(1, OffsetsQ[s], OffsetsQ[s + 1] - OffsetsQ[s]),
                k.narrow(1, offsetsK[s], offsetsK[s + 1] - offsetsK[s]),
                v.narrow(1, offsetsK[s], offsetsK[s + 1] - offsetsK[s]), sinks, slopes))], 1);
        }

        var members = q.size(2) / k.size(2);
        return stack([.. Enumerable.Range(0, (int)q.size(2)).Select(h => Head(
            q.select(2, h), k.select(2, h / members), v.select(2, h / members), sinks?[h], slopes?[h]))], 2);
    }

    /// <summary>q [B, Tq, K], k [B, Tk, K], v [B, Tk, V] -> [B, Tq, V].</summary>
    private Tensor Head(Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor? slope)
    {
        var (queries, keys) = (q.size(1), k.size(1));
        if (keys == 0)
            return q.sum(-1, keepdim: true).expand(-1, -1, v.size(2)) * 0;
        var scores = matmul(q, k.transpose(1, 2)) * (Scale ?? 1 / Math.Sqrt(q.size(2)));
        if (Softcap is { } cap)
            scores = tanh(scores / cap) * cap;
        var distance = arange(queries).unsqueeze(1) + (keys - queries) - arange(keys);
        if (slope is not null)
            scores = scores - slope * distance.abs();
        var seen = ones_like(distance).to(@bool);
        if (Causal)
            seen = seen & (distance >= 0);
        if (Window is { } window)
            seen = seen & (distance < window);

        if (sink is not null)
        {
            scores = cat([scores, sink.expand(scores.size(0), queries, 1)], -1);
            v = cat([v, zeros_like(v.sum(1, keepdim: true))], 1);
            seen = cat([seen, ones(queries, 1, dtype: @bool)], -1);
        }
        scores = scores.masked_fill(~seen, double.NegativeInfinity);
        var weights = exp(scores - scores.amax([-1], keepdim: true).detach().nan_to_num(neginf: 0)); // -inf: no key is seen
        var sum = weights.sum(-1, keepdim: true);
        return matmul(weights, v) / (sum + (sum == 0).to(sum.dtype));
    }
}
