using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// Gated linear attention in the chunked matrix form (Yang et al. 2023, arXiv:2312.06635), in plain TorchSharp operations with their
/// autograd, on any device. S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T and o_t = scale q_t S_t become matrix products within chunks of
/// <see cref="MaxChunkSize"/> tokens, and one state per chunk.
/// </summary>
/// <remarks>
/// <para>A gate between two tokens is exp(G_i - G_j), G being the sum of log-decays since the chunk began. Splitting it into
/// exp(G_i) and exp(-G_j) would overflow; here every exponent is at most 0. Within a chunk the pair (i, j), j &lt; i, belongs to the
/// largest aligned block of 2, 4, 8, ... tokens with j in its first half and i in its second. With r the first token of the second
/// half the gate is exp(G_i - G_r) exp(G_r - G_j): one factor for the queries, one for the keys of a block.</para>
/// <para>A reset (-inf) is taken as <see cref="LowestGate"/>, whose exponential is 0 as well and whose sums stay finite. The sums are
/// float64, so that small gates after a reset keep their digits.</para>
/// </remarks>
internal static class GlaChunk
{
    private const int MaxChunkSize = 64;
    private const double LowestGate = -1e4;

    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K]; query head h reads key head h / (H / Hkv).</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K], log-decay, at most 0.</param>
    /// <param name="initialState">float32 [S, H, K, V], or null for zero.</param>
    /// <param name="fused">Loop over the chunks with one running state, instead of all chunks at once with all their states: the
    /// working memory of a forward pass without gradients is then that of one chunk per sequence.</param>
    /// <returns>The output in v's dtype and shape [B, T, H, V], and the final states, float32 [S, H, K, V].</returns>
    public static (Tensor output, Tensor finalState) Run(
        Tensor q, Tensor k, Tensor v, Tensor g, double scale, Tensor? initialState, Sequences sequences, bool fused)
    {
        using var scope = NewDisposeScope();
        var (heads, keyHeads) = (q.size(2), k.size(2));
        var layout = new ChunkLayout(sequences, MaxChunkSize);
        // Heads that share keys differ only in their initial states: without one they share their state [S, Hkv, 1, K, V], too.
        var state = initialState?.unflatten(1, keyHeads, -1) ??
            zeros([sequences.Count, keyHeads, 1, k.size(3), v.size(3)], dtype: ScalarType.Float32, device: q.device);
        var (qc, kc, vc, gc) = (layout.Cut(q), layout.Cut(k), layout.Cut(v), layout.Cut(g));

        Tensor output;
        if (fused)
        {
            var (ql, kl, vl, gl) = (layout.SplitLevels(qc), layout.SplitLevels(kc), layout.SplitLevels(vc), layout.SplitLevels(gc));
            var outputs = new Tensor[layout.Levels];
            state = layout.PassStates(state, (level, start) =>
            {
                using var levelScope = NewDisposeScope();
                var chunk = new Chunks(ql[level], kl[level], vl[level], gl[level], scale);
                outputs[level] = chunk.Output(start).MoveToOuterDisposeScope();
                return (chunk.Decay() * start).add(chunk.Gain(), HeldScalar.One).MoveToOuterDisposeScope();
            });
            output = layout.JoinLevels(outputs);
        }
        else
        {
            var chunks = new Chunks(qc, kc, vc, gc, scale);
            var (decays, gains) = (layout.SplitLevels(chunks.Decay()), layout.SplitLevels(chunks.Gain()));
            var starts = new Tensor[layout.Levels];
            state = layout.PassStates(state, (level, start) =>
            {
                starts[level] = start;
                return (decays[level] * start).add(gains[level], HeldScalar.One);
            });
            output = chunks.Output(layout.JoinLevels(starts));
        }
        state = state.expand(-1, -1, heads / keyHeads, -1, -1).reshape(sequences.Count, heads, k.size(3), v.size(3));
        return (layout.Join(output.to(v.dtype)).MoveToOuterDisposeScope(), state.MoveToOuterDisposeScope());
    }

    /// <summary>Chunks that are worked on together, in float32. Rows of queries are (token, head of the group): keys serve a group as they are.</summary>
    private sealed class Chunks
    {
        private readonly Tensor _q;         // [chunks, Hkv, C, G, K], scaled
        private readonly Tensor _k;         // [chunks, Hkv, C, K]
        private readonly Tensor _v;         // [chunks, Hkv, C, V]
        private readonly Tensor _gateSums;  // float64 [chunks, Hkv, C, K], from the start of the chunk to each token inclusive
        private readonly long _size;        // C
        private readonly long _group;       // G = H / Hkv

        public Chunks(Tensor q, Tensor k, Tensor v, Tensor g, double scale)
        {
            (_size, _group) = (q.size(1), q.size(2) / k.size(2));
            _q = (q.to(ScalarType.Float32) * scale).unflatten(2, -1, _group).permute(0, 2, 1, 3, 4).contiguous();
            _k = k.to(ScalarType.Float32).transpose(1, 2).contiguous();
            _v = v.to(ScalarType.Float32).transpose(1, 2).contiguous();
            _gateSums = g.transpose(1, 2).to(ScalarType.Float64).clamp_min(LowestGate).cumsum(2);
        }

        /// <summary>What is left of a state at the end of the chunk: [chunks, Hkv, 1, K, 1].</summary>
        public Tensor Decay() => Gate(_gateSums.narrow(2, _size - 1, 1)).unsqueeze(-1);

        /// <summary>What the chunk adds to a state: [chunks, Hkv, 1, K, V].</summary>
        public Tensor Gain()
        {
            var toEnd = Gate(_gateSums.narrow(2, _size - 1, 1) - _gateSums);
            return (_k * toEnd).transpose(2, 3).matmul(_v).unsqueeze(2);
        }

        /// <summary>[chunks, C, H, V], given the states at the start, [chunks, Hkv, 1 or G, K, V].</summary>
        public Tensor Output(Tensor start)
        {
            var fromStart = _q * Gate(_gateSums).unsqueeze(3);
            var inherited = start.size(2) == 1
                ? fromStart.flatten(2, 3).matmul(start.squeeze(2)).unflatten(2, -1, _group)
                : fromStart.transpose(2, 3).matmul(start).transpose(2, 3);
            var own = Scores().flatten(2, 3).matmul(_v).unflatten(2, -1, _group);
            return inherited.add(own, HeldScalar.One).permute(0, 2, 1, 3, 4).flatten(2, 3);
        }

        /// <summary>q_i exp(G_i - G_j) k_j for j up to i, else 0: [chunks, Hkv, C, G, C].</summary>
        private Tensor Scores()
        {
            // [chunks, Hkv, blocks, width, G, width], the blocks growing from the single token, where the gate is 1.
            var scores = (_q * _k.unsqueeze(3)).sum(-1, keepdim: true).unsqueeze(3);
            for (var half = 1L; half < _size; half *= 2)
            {
                var sums = _gateSums.unflatten(2, -1, 2, half);
                var (first, second) = (sums.select(3, 0), sums.select(3, 1));
                var reference = second.narrow(3, 0, 1);
                var keys = _k.unflatten(2, -1, 2, half).select(3, 0) * Gate(reference - first);
                var queries = _q.unflatten(2, -1, 2, half).select(3, 1) * Gate(second - reference).unsqueeze(4);
                var across = queries.flatten(3, 4).matmul(keys.transpose(3, 4)).unflatten(3, half, _group);

                var halves = scores.unflatten(2, -1, 2);
                var upper = cat([halves.select(3, 0), zeros_like(across)], -1);
                var lower = cat([across, halves.select(3, 1)], -1);
                scores = cat([upper, lower], 3);
            }
            return scores.squeeze(2);
        }

        /// <summary>exp of a sum of gates, which is at most 0.</summary>
        private static Tensor Gate(Tensor logDecay) => logDecay.to(ScalarType.Float32).exp();
    }
}
