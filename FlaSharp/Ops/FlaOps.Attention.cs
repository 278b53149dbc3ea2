using FlaSharp.Interop;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// Softmax attention: softmax(scale * q kᵀ) v for each head. Query i of Tq is aligned with key position i + Tk - Tq (the last
    /// query with the last key). A query that sees no key gives 0.
    /// </summary>
    /// <param name="q">[B, Tq, H, K], float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="k">[B, Tk, Hkv, K], dtype of <paramref name="q"/>; Hkv divides H. Differentiable.</param>
    /// <param name="v">[B, Tk, Hkv, V], dtype of <paramref name="q"/>. Differentiable.</param>
    /// <param name="causal">A query sees the keys up to its aligned position, otherwise all.</param>
    /// <param name="scale">K^-0.5 if null.</param>
    /// <param name="window">A query sees the last so many of these keys, its aligned position among them. Needs causal.</param>
    /// <param name="cuSeqlensQ">
    /// int32 or int64 [S + 1]: where the sequences start that are packed into one row, and where the last ends; then B must be 1.
    /// A query sees keys of its own sequence only.
    /// </param>
    /// <param name="cuSeqlensK">The same for the keys; as <paramref name="cuSeqlensQ"/> if null.</param>
    /// <param name="softcap">c: the scaled products s become c tanh(s / c).</param>
    /// <param name="sinks">[H], floating: a logit per head that takes part in the softmax and has value 0. Differentiable.</param>
    /// <param name="alibiSlopes">[H], float32: slope * distance to the aligned position is subtracted. No gradient.</param>
    /// <param name="dropout">
    /// Probability that an attention weight is set to 0; the others grow by 1 / (1 - dropout). Drawn from TorchSharp's global
    /// generator, so <c>torch.manual_seed</c> makes it repeatable. Always applied if not 0: pass 0 when not training.
    /// </param>
    /// <returns>[B, Tq, H, V], in the dtype of <paramref name="v"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <remarks>
    /// Runs on libtorch's scaled_dot_product_attention where it knows all the options. Otherwise block by block over the queries
    /// with the keys that a block sees, so that memory grows with the window and not with Tq * Tk; Dao et al., FlashAttention (2022).
    /// </remarks>
    public static Tensor Attention(Tensor q, Tensor k, Tensor v, bool causal = true, double? scale = null,
        int? window = null, Tensor? cuSeqlensQ = null, Tensor? cuSeqlensK = null, double? softcap = null,
        Tensor? sinks = null, Tensor? alibiSlopes = null, double dropout = 0.0)
    {
        CheckAttentionInput(q, k, v, sinks, alibiSlopes);
        CheckAttentionOptions(causal, scale, window, softcap, dropout);
        var segments = AttentionSegment.Of(q, k, cuSeqlensQ, cuSeqlensK);
        var options = new AttentionOptions
        {
            Causal = causal,
            Scale = scale ?? 1 / Math.Sqrt(q.size(3)),
            Window = window is { } w && w < segments.Max(segment => segment.Keys) ? w : null,
            Softcap = softcap,
            Dropout = dropout,
        };
        var isPlain = options is { Window: null, Softcap: null, Dropout: 0 } && sinks is null && alibiSlopes is null;
        return isPlain && segments.All(segment => LibtorchAttention.Knows(segment, causal))
            ? LibtorchAttention.Run(q, k, v, segments, causal, options.Scale)
            : new BlockAttention(options, segments).Run(q, k, v, sinks, alibiSlopes)[0]!;
    }

    private static void CheckAttentionInput(Tensor q, Tensor k, Tensor v, Tensor? sinks, Tensor? alibiSlopes)
    {
        Guard.Shape(q, "[B, Tq, H, K]", [-1, -1, -1, -1]);
        Guard.NotEmpty(q, "[B, Tq, H, K]");
        Guard.Floating(q);
        Guard.Shape(k, "[B, Tk, Hkv, K]", [q.size(0), -1, -1, q.size(3)]);
        Guard.NotEmpty(k, "[B, Tk, Hkv, K]");
        Guard.Shape(v, "[B, Tk, Hkv, V]", [q.size(0), k.size(1), k.size(2), -1]);
        Guard.NotEmpty(v, "[B, Tk, Hkv, V]");
        Guard.SameDtype(q, nameof(q), (k, nameof(k)), (v, nameof(v)));
        if (q.size(2) % k.size(2) != 0)
            throw new ArgumentException(
                $"The heads of k, Hkv = {k.size(2)}, must divide the heads of q, H = {q.size(2)}.", nameof(k));
        Guard.ShapeIfGiven(sinks, "[H]", [q.size(2)]);
        if (sinks is not null)
            Guard.Floating(sinks);
        Guard.ShapeIfGiven(alibiSlopes, "[H]", [q.size(2)]);
        Guard.Float32IfGiven(alibiSlopes);
        Guard.Operands(
            q, nameof(q), (k, nameof(k)), (v, nameof(v)), (sinks, nameof(sinks)), (alibiSlopes, nameof(alibiSlopes)));
    }

    private static void CheckAttentionOptions(bool causal, double? scale, int? window, double? softcap, double dropout)
    {
        if (scale is { } factor && !double.IsFinite(factor))
            throw new ArgumentException($"scale must be finite, but is {factor}.", nameof(scale));
        if (window is < 1)
            throw new ArgumentOutOfRangeException(nameof(window), window, "window counts the query's own position: it must be at least 1.");
        if (window is not null && !causal)
            throw new ArgumentException("window needs causal: it counts keys backwards from the query's position.", nameof(window));
        if (softcap is { } cap && !(cap > 0 && double.IsFinite(cap)))
            throw new ArgumentOutOfRangeException(nameof(softcap), softcap, "softcap must be positive and finite; null switches it off.");
        if (!(dropout is >= 0 and < 1))
            throw new ArgumentOutOfRangeException(nameof(dropout), dropout, "dropout must be at least 0 and less than 1.");
    }
}
