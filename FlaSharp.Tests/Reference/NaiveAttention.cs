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
    public Tensor Run(Tensor q, Tensor k, Tensor v, Tensor? sinks = null, Tensor? slopes = null) => OverSequences(1, q, k, v,
        (q, k, v) => OverHeads(2, q, k, (q, k, h, kvHead) => Head(q, k, v!.select(2, kvHead), sinks?[h], slopes?[h])));

    /// <summary>The logarithms of the sums of exponentials, [B, H, Tq]; -inf where no key is seen.</summary>
    public Tensor LogSumExp(Tensor q, Tensor k, Tensor? sinks = null, Tensor? slopes = null) => OverSequences(2, q, k, null,
        (q, k, _) => OverHeads(1, q, k, (q, k, h, _) => Scores(q, k, sinks?[h], slopes?[h]).logsumexp(-1)));

    private Tensor OverSequences(int time, Tensor q, Tensor k, Tensor? v, Func<Tensor, Tensor, Tensor?, Tensor> run)
    {
        if (OffsetsQ is null)
            return run(q, k, v);
        var offsetsK = OffsetsK ?? OffsetsQ;
        Tensor Part(Tensor x, long[] offsets, int s) => x.narrow(1, offsets[s], offsets[s + 1] - offsets[s]);
        return cat([.. Enumerable.Range(0, OffsetsQ.Length - 1)
            .Select(s => run(Part(q, OffsetsQ, s), Part(k, offsetsK, s), v is null ? null : Part(v, offsetsK, s)))], time);
    }

    private static Tensor OverHeads(int dimension, Tensor q, Tensor k, Func<Tensor, Tensor, int, int, Tensor> run)
    {
        var members = (int)(q.size(2) / k.size(2));
        return stack([.. Enumerable.Range(0, (int)q.size(2))
            .Select(h => run(q.select(2, h), k.select(2, h / members), h, h / members))], dimension);
    }

    /// <summary>q [B, Tq, K], k [B, Tk, K], v [B, Tk, V] -> [B, Tq, V].</summary>
    private Tensor Head(Tensor q, Tensor k, Tensor v, Tensor? sink, Tensor? slope)
    {
        if (k.size(1) == 0)
            return q.sum(-1, keepdim: true).expand(-1, -1, v.size(2)) * 0;
        var scores = Scores(q, k, sink, slope);
        if (sink is not null)
            v = cat([v, zeros_like(v.sum(1, keepdim: true))], 1);
        var weights = exp(scores - scores.amax([-1], keepdim: true).detach().nan_to_num(neginf: 0)); // -inf: no key is seen
        var sum = weights.sum(-1, keepdim: true);
        return matmul(weights, v) / (sum + (sum == 0).to(sum.dtype));
    }

    /// <summary>[B, Tq, Tk], -inf where a key is not seen; the sink's are a last column.</summary>
    private Tensor Scores(Tensor q, Tensor k, Tensor? sink, Tensor? slope)
    {
        var (queries, keys) = (q.size(1), k.size(1));
        var scores = matmul(q, k.transpose(1, 2)) * (Scale ?? 1 / Math.Sqrt(q.size(2)));
        if (Softcap is { } cap)
            scores = tanh(scores / cap) * cap;
        var distance = arange(queries, device: q.device).unsqueeze(1) + (keys - queries) - arange(keys, device: q.device);
        if (slope is not null)
            scores = scores - slope * distance.abs();
        var seen = ones_like(distance).to(@bool);
        if (Causal)
            seen = seen & (distance >= 0);
        if (Window is { } window)
            seen = seen & (distance < window);
        scores = scores.masked_fill(~seen, double.NegativeInfinity);
        return sink is null ? scores : cat([scores, sink.expand(scores.size(0), queries, 1)], -1);
    }
}
