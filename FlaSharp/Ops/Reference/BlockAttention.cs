using FlaSharp.Autograd;
using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// Attention with all options in plain TorchSharp, over blocks of queries and the keys that some query of the block sees. Backward
/// computes the weights again from the logarithm of their denominators, so neither pass holds more than one block of them.
/// q [B, Tq, H, K], k [B, Tk, Hkv, K], v [B, Tk, Hkv, V], sinks [H]?, alibiSlopes [H]? -> output [B, Tq, H, V].
/// </summary>
/// <remarks>Inside, everything is float32 with the heads first, R = B * Hkv rows, and M = H / Hkv query heads to a row.</remarks>
internal sealed class BlockAttention(AttentionOptions options, AttentionSegment[] segments) : FlaFunction
{
    private const long LongestBlock = 128;      // queries: long enough for the matrix products, short enough to skip hidden keys
    private const long MostScores = 16_000_000; // of one block, over all heads: 64 MB in float32

    /// <summary>After a run whose options ask for it: float32 [B, H, Tq], in the caller's dispose scope.</summary>
    public Tensor? LogSumExp { get; private set; }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var heads = new Heads(inputs, options.Scale);
        var output = zeros(heads.Rows, heads.Members, heads.QueryTime, heads.V.size(2), dtype: ScalarType.Float32, device: heads.Q.device);
        var logDenominator = heads.LogWithoutKeys();
        var kept = new List<Tensor>(); // which weights dropout kept, block by block
        foreach (var block in Blocks(heads))
        {
            using var scope = NewDisposeScope();
            var scores = Scores(heads, block, out _);
            var log = scores.logsumexp(-1); // [R, M, n]
            if (heads.Sinks is not null)
                log = logaddexp(log, heads.Sinks);
            logDenominator.narrow(2, block.Query, block.Queries).copy_(log);

            var weights = scores.sub_(log.unsqueeze(-1)).exp_();
            if (options.Dropout > 0)
            {
                var keep = rand_like(weights) >= options.Dropout;
                weights.mul_(keep).mul_(1 / (1 - options.Dropout));
                kept.Add(keep.MoveToOuterDisposeScope());
            }
            output.narrow(2, block.Query, block.Queries)
                .copy_(weights.flatten(1, 2).bmm(block.Of(heads.V)).unflatten(1, heads.Members, block.Queries));
        }
        saved?.Save([.. inputs, logDenominator, .. kept]);
        if (options.ReturnsLogSumExp)
            LogSumExp = heads.PerQuery(logDenominator).MoveToOuterDisposeScope();
        return [heads.TimeFirst(output).to(inputs[2]!.dtype)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        Tensor?[] inputs = [saved[0], saved[1], saved[2], saved[3], saved[4]];
        if (gradOutputs[0] is not { } gradient)
            return new Tensor?[inputs.Length];
        var heads = new Heads(inputs, options.Scale);
        var logDenominator = saved[5]!;
        var dOutput = heads.HeadsFirst(gradient);
        var (dQ, dK, dV) = (zeros_like(heads.Q), zeros_like(heads.K), zeros_like(heads.V));
        var dSinks = heads.Sinks is null ? null : zeros_like(heads.Sinks);
        foreach (var (index, block) in Blocks(heads).Index())
        {
            using var scope = NewDisposeScope();
            var log = logDenominator.narrow(2, block.Query, block.Queries);
            var weights = Scores(heads, block, out var capped).sub_(log.unsqueeze(-1)).exp_().flatten(1, 2); // [R, M n, keys]
            var dOut = dOutput.narrow(2, block.Query, block.Queries).reshape(heads.Rows, -1, heads.V.size(2));

            var dWeights = dOut.bmm(block.Of(heads.V).transpose(1, 2));
            var used = weights; // after dropout
            if (options.Dropout > 0)
            {
                var keep = saved[6 + index]!.flatten(1, 2);
                used = (weights * keep).mul_(1 / (1 - options.Dropout));
                dWeights.mul_(keep).mul_(1 / (1 - options.Dropout));
            }
            block.Of(dV).add_(used.transpose(1, 2).bmm(dOut), HeldScalar.One);

            var mean = (weights * dWeights).sum(-1, keepdim: true);
            if (dSinks is not null)
            {
                var sinkWeights = (heads.Sinks! - log).exp();
                dSinks.sub_((sinkWeights * mean.view(log.shape)).sum(-1, keepdim: true));
            }

            var dScores = dWeights.sub_(mean).mul_(weights);
            if (capped is not null)
                dScores.mul_(1 - capped.flatten(1, 2).square());
            dQ.narrow(2, block.Query, block.Queries)
                .copy_(dScores.bmm(block.Of(heads.K)).unflatten(1, heads.Members, block.Queries));
            block.Of(dK).add_(dScores.transpose(1, 2).bmm(heads.QueriesOf(block)), HeldScalar.One);
        }
        return
        [
            heads.TimeFirst(dQ.mul_(options.Scale)).to(inputs[0]!.dtype),
            heads.TimeFirst(dK.unsqueeze(1)).to(inputs[1]!.dtype),
            heads.TimeFirst(dV.unsqueeze(1)).to(inputs[2]!.dtype),
            dSinks is null ? null : heads.PerHead(dSinks).to(inputs[3]!.dtype),
            null,
        ];
    }

    /// <summary>The scores [R, M, n, keys] of a block, -inf where a query does not see a key.</summary>
    /// <param name="capped">tanh(s / softcap), if there is a softcap.</param>
    private Tensor Scores(Heads heads, Block block, out Tensor? capped)
    {
        var scores = heads.QueriesOf(block).bmm(block.Of(heads.K).transpose(1, 2))
            .unflatten(1, heads.Members, block.Queries);
        capped = null;
        if (options.Softcap is { } cap)
        {
            capped = scores.div_(cap).tanh_();
            scores = capped * cap;
        }
        if (!options.Causal && heads.AlibiSlopes is null)
            return scores;

        var device = scores.device;
        var distance = arange(block.Position, block.Position + block.Queries, device: device).unsqueeze(1)
            - arange(block.FirstKey, block.FirstKey + block.Keys, device: device); // [n, keys], negative for later keys
        if (heads.AlibiSlopes is not null)
            scores.sub_(heads.AlibiSlopes * distance.abs().to(ScalarType.Float32));
        if (options.Causal)
            scores.masked_fill_(distance < 0, double.NegativeInfinity);
        if (options.Window is { } window)
            scores.masked_fill_(distance >= window, double.NegativeInfinity);
        return scores;
    }

    /// <summary>The blocks of all segments, less the queries that see no key: they keep their zeros.</summary>
    private IEnumerable<Block> Blocks(Heads heads)
    {
        foreach (var segment in segments.Where(segment => segment.Keys > 0))
        {
            var ahead = segment.Keys - segment.Queries; // position of the first query among the keys
            var longest = MostScores / (heads.Rows * heads.Members * (options.Window + LongestBlock ?? segment.Keys));
            var length = Math.Clamp(longest, 1, LongestBlock);
            for (var first = options.Causal ? Math.Max(0L, -ahead) : 0; first < segment.Queries; first += length)
            {
                var queries = Math.Min(length, segment.Queries - first);
                var position = first + ahead;
                var firstKey = options.Window is { } window ? Math.Max(0, position - window + 1) : 0;
                var endKey = options.Causal ? position + queries : segment.Keys;
                yield return new Block(segment.QueryStart + first, queries, position, segment.KeyStart, firstKey, endKey - firstKey);
            }
        }
    }

    /// <summary>Adjacent queries, starting at this position of their segment's keys, and the keys that some of them see.</summary>
    private readonly record struct Block(long Query, long Queries, long Position, long KeyStart, long FirstKey, long Keys)
    {
        /// <summary>The part of k or v [R, Tk, ...].</summary>
        public Tensor Of(Tensor keys) => keys.narrow(1, KeyStart + FirstKey, Keys);
    }

    /// <summary>The inputs, float32, heads first.</summary>
    private sealed class Heads
    {
        private readonly long _batch;

        public Heads(Tensor?[] inputs, double scale)
        {
            var (q, k, v) = (inputs[0]!, inputs[1]!, inputs[2]!);
            _batch = q.size(0);
            Rows = _batch * k.size(2);
            Members = q.size(2) / k.size(2);
            Q = HeadsFirst(q) * scale;
            K = HeadsFirst(k).flatten(1, 2);
            V = HeadsFirst(v).flatten(1, 2);
            Sinks = inputs[3] is { } sinks ? PerRow(sinks) : null;
            AlibiSlopes = inputs[4] is { } slopes ? PerRow(slopes).unsqueeze(-1) : null;
        }

        public long Rows { get; }

        public long Members { get; }

        public long QueryTime => Q.size(2);

        /// <summary>[R, M, Tq, K], scaled.</summary>
        public Tensor Q { get; }

        /// <summary>[R, Tk, K].</summary>
        public Tensor K { get; }

        /// <summary>[R, Tk, V].</summary>
        public Tensor V { get; }

        /// <summary>[R, M, 1].</summary>
        public Tensor? Sinks { get; }

        /// <summary>[R, M, 1, 1].</summary>
        public Tensor? AlibiSlopes { get; }

        /// <summary>[R, M n, K], scaled.</summary>
        public Tensor QueriesOf(Block block) => Q.narrow(2, block.Query, block.Queries).reshape(Rows, -1, Q.size(3));

        /// <summary>[B, T, R / B * m, K] to [R, m, T, K], where m is M for queries and 1 for keys.</summary>
        public Tensor HeadsFirst(Tensor tensor)
        {
            var groups = Rows / _batch;
            return tensor.InDtype(ScalarType.Float32).unflatten(2, groups, tensor.size(2) / groups)
                .permute(0, 2, 3, 1, 4).flatten(0, 1).contiguous();
        }

        /// <summary>[R, m, T, K] to [B, T, R / B * m, K].</summary>
        public Tensor TimeFirst(Tensor tensor) =>
            tensor.unflatten(0, _batch, Rows / _batch).permute(0, 3, 1, 2, 4).flatten(2, 3).contiguous();

        /// <summary>[R, M, Tq], of queries that see no key: the sink's, or that of 0.</summary>
        public Tensor LogWithoutKeys()
        {
            long[] shape = [Rows, Members, QueryTime];
            return Sinks is null
                ? full(shape, double.NegativeInfinity, ScalarType.Float32, Q.device)
                : Sinks.expand(shape).contiguous();
        }

        /// <summary>[R, M, Tq] to [B, H, Tq], in memory of its own.</summary>
        public Tensor PerQuery(Tensor rows) => rows.clone().view(_batch, -1, QueryTime);

        /// <summary>Sums [R, M, 1] over the batch, to [H].</summary>
        public Tensor PerHead(Tensor rows) => rows.view(_batch, -1).sum([0]);

        private Tensor PerRow(Tensor perHead) =>
            perHead.to(ScalarType.Float32).view(1, -1, Members, 1).expand(_batch, -1, -1, -1).flatten(0, 1);
    }
}
