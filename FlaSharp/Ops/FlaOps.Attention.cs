using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
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
    /// <param name="backend">
    /// What computes it; <see cref="PlanAttention"/> says what <see cref="AttentionBackend.Auto"/> takes.
    /// </param>
    /// <returns>[B, Tq, H, V], in the dtype of <paramref name="v"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <exception cref="NotSupportedException">The backend does not take the call; or its CUDA kernels cannot run, and
    /// <see cref="CudaKernels.Strict"/> is set.</exception>
    /// <remarks>
    /// On a GPU kernels of this library compute it in bfloat16 and float16 with K and V up to 256, and gradients repeat bit by
    /// bit. All else, float32 on a GPU as well, runs on libtorch's scaled_dot_product_attention where it knows all the options.
    /// Otherwise block by block over the queries with the keys that a block sees, so that memory grows with the window and not
    /// with Tq * Tk; Dao et al., FlashAttention (2022).
    /// </remarks>
    public static Tensor Attention(Tensor q, Tensor k, Tensor v, bool causal = true, double? scale = null,
        int? window = null, Tensor? cuSeqlensQ = null, Tensor? cuSeqlensK = null, double? softcap = null,
        Tensor? sinks = null, Tensor? alibiSlopes = null, double dropout = 0.0,
        AttentionBackend backend = AttentionBackend.Auto)
    {
        var (sequences, options) = CheckAttention(
            q, k, v, causal, scale, window, cuSeqlensQ, cuSeqlensK, softcap, sinks, alibiSlopes, dropout);
        return RunAttention(nameof(Attention), q, k, v, sinks, alibiSlopes, sequences, options, backend).output;
    }

    /// <summary>
    /// <see cref="Attention"/>, and the logarithm of each query's sum of exponentials: with it attention over parts of the keys
    /// is joined, weighted by the parts' sums.
    /// </summary>
    /// <param name="q">As in <see cref="Attention"/>, here and below.</param>
    /// <param name="k">Keys.</param>
    /// <param name="v">Values.</param>
    /// <param name="causal">Whether later keys are hidden.</param>
    /// <param name="scale">Of the products.</param>
    /// <param name="window">How many keys a query sees.</param>
    /// <param name="cuSeqlensQ">Packed queries.</param>
    /// <param name="cuSeqlensK">Packed keys.</param>
    /// <param name="softcap">A bound of the scores.</param>
    /// <param name="sinks">They take part in the sums.</param>
    /// <param name="alibiSlopes">Slopes.</param>
    /// <param name="dropout">It changes the output, not the sums.</param>
    /// <param name="backend">What computes it. libtorch's kernel does not tell the sums.</param>
    /// <returns>
    /// The output, and float32 [B, H, Tq], the logarithm of the sum of exp(score) over the keys that a query sees, and its sink;
    /// -inf where it sees none. Gradients flow through the output alone.
    /// </returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <exception cref="NotSupportedException">The backend does not take the call; or its CUDA kernels cannot run, and
    /// <see cref="CudaKernels.Strict"/> is set.</exception>
    public static (Tensor output, Tensor logSumExp) AttentionWithLogSumExp(Tensor q, Tensor k, Tensor v, bool causal = true,
        double? scale = null, int? window = null, Tensor? cuSeqlensQ = null, Tensor? cuSeqlensK = null, double? softcap = null,
        Tensor? sinks = null, Tensor? alibiSlopes = null, double dropout = 0.0,
        AttentionBackend backend = AttentionBackend.Auto)
    {
        var (sequences, options) = CheckAttention(
            q, k, v, causal, scale, window, cuSeqlensQ, cuSeqlensK, softcap, sinks, alibiSlopes, dropout);
        var (output, logSumExp) = RunAttention(nameof(AttentionWithLogSumExp), q, k, v, sinks, alibiSlopes, sequences,
            options with { ReturnsLogSumExp = true }, backend);
        return (output, logSumExp!);
    }

    /// <summary>
    /// How <see cref="Attention"/> runs for such inputs: what <see cref="AttentionBackend.Auto"/> takes and why.
    /// </summary>
    /// <param name="q">
    /// As in <see cref="Attention"/>, here and below: device, sizes, dtype, and whether a gradient is recorded.
    /// </param>
    /// <param name="k">Keys.</param>
    /// <param name="v">Values.</param>
    /// <param name="causal">Whether later keys are hidden.</param>
    /// <param name="window">How many keys a query sees.</param>
    /// <param name="cuSeqlensQ">Packed queries.</param>
    /// <param name="cuSeqlensK">Packed keys.</param>
    /// <param name="softcap">A bound of the scores.</param>
    /// <param name="sinks">Sinks.</param>
    /// <param name="alibiSlopes">Slopes.</param>
    /// <param name="dropout">Dropout.</param>
    /// <param name="backend">The backend that <see cref="Attention"/> is called with.</param>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <exception cref="NotSupportedException">The backend does not take the call.</exception>
    public static OperationPath PlanAttention(Tensor q, Tensor k, Tensor v, bool causal = true, int? window = null,
        Tensor? cuSeqlensQ = null, Tensor? cuSeqlensK = null, double? softcap = null, Tensor? sinks = null,
        Tensor? alibiSlopes = null, double dropout = 0.0, AttentionBackend backend = AttentionBackend.Auto)
    {
        var (sequences, options) = CheckAttention(
            q, k, v, causal, null, window, cuSeqlensQ, cuSeqlensK, softcap, sinks, alibiSlopes, dropout);
        var plan = AttentionPlan.Of(q, v.Size(3), sequences, options, is_grad_enabled() && HasGradient(q, k, v, sinks), backend);
        return new OperationPath(nameof(Attention), plan.Name, plan.Reason);
    }

    private static (Tensor output, Tensor? logSumExp) RunAttention(string operation, Tensor q, Tensor k, Tensor v, Tensor? sinks,
        Tensor? alibiSlopes, AttentionSequences sequences, AttentionOptions options, AttentionBackend backend)
    {
        var plan = AttentionPlan.Of(q, v.Size(3), sequences, options, is_grad_enabled() && HasGradient(q, k, v, sinks), backend);
        if (plan.Missing is not null)
            CudaRuntime.FallBack(operation, plan.Missing);
        switch (plan.Path)
        {
            case AttentionPath.Kernels:
                return AttentionCudaFunction.Run(q, k, v, sinks, alibiSlopes, sequences, options);
            case AttentionPath.Libtorch:
                return (LibtorchAttention.Run(q, k, v, sequences.Segments, options.Causal, options.Scale), null);
            default:
                var blocks = new BlockAttention(options, sequences.Segments);
                var output = blocks.Run(q, k, v, sinks, alibiSlopes)[0]!;
                return (output, blocks.LogSumExp);
        }
    }

    private static (AttentionSequences, AttentionOptions) CheckAttention(Tensor q, Tensor k, Tensor v, bool causal, double? scale,
        int? window, Tensor? cuSeqlensQ, Tensor? cuSeqlensK, double? softcap, Tensor? sinks, Tensor? alibiSlopes, double dropout)
    {
        CheckAttentionInput(q, k, v, sinks, alibiSlopes);
        CheckAttentionOptions(causal, scale, window, softcap, dropout);
        var sequences = AttentionSequences.Of(q, k, cuSeqlensQ, cuSeqlensK);
        return (sequences, new AttentionOptions
        {
            Causal = causal,
            Scale = scale ?? 1 / Math.Sqrt(q.Size(3)),
            Window = window < sequences.Keys.MaxLength ? window : null,
            Softcap = softcap,
            Dropout = dropout,
            HasSinks = sinks is not null,
            HasAlibiSlopes = alibiSlopes is not null,
        });
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
