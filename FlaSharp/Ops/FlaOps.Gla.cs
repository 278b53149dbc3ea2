using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    internal const string CpuPath = "cpu-simd";
    internal const string CudaPath = "cuda";
    internal const string TorchPath = "torch";

    /// <summary>
    /// Gated linear attention: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T and o_t = scale q_t S_t, for each head, with a decay of
    /// its own for each key channel (Yang et al. 2023, arXiv:2312.06635).
    /// </summary>
    /// <param name="q">Queries [B, T, H, K], float32, float16 or bfloat16; K and V may be any size. Has a gradient.</param>
    /// <param name="k">Keys [B, T, Hkv, K] in q's dtype, with H a multiple of Hkv: query head h reads head h / (H / Hkv) of k, v
    /// and g. Has a gradient.</param>
    /// <param name="v">Values [B, T, Hkv, V] in q's dtype. Has a gradient.</param>
    /// <param name="g">Log-decays [B, T, Hkv, K] in q's dtype or float32, at most 0; -inf is an exact reset of the channel. Has
    /// a gradient.</param>
    /// <param name="mode">How to compute it. An explicit mode is taken as given; <see cref="PlanGla"/> says what
    /// <see cref="LinearAttentionMode.Auto"/> takes. All modes give the same up to rounding.</param>
    /// <param name="scale">Factor on q; K^-0.5 if absent.</param>
    /// <param name="initialState">State before the first token, float32 [S, H, K, V] with S the packed sequences, or B; zero if
    /// absent. Has a gradient.</param>
    /// <param name="outputFinalState">Whether the state after the last token is wanted.</param>
    /// <param name="cuSeqlens">int32 or int64 [S + 1]: sequence s is the tokens from cuSeqlens[s] up to, not including,
    /// cuSeqlens[s + 1] of the single row (B must be 1). A sequence may be empty. On the CPU, or it is copied there.</param>
    /// <param name="reverse">Whether each sequence runs from its end to its start.</param>
    /// <param name="updateState">Whether the state after the last token is written over <paramref name="initialState"/>, which a
    /// decoding step needs no longer; then it is the final state that is returned. The recurrence's kernels do that in place,
    /// all else by a copy. Not while gradients are recorded, nor before the backward pass of an earlier call with that state.
    /// </param>
    /// <returns>The output [B, T, H, V] in v's dtype, and the final state, float32 [S, H, K, V], or null. Gradients flow through
    /// both.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device, the mode, the scale or cuSeqlens does not fit; or a state to
    /// update is absent, not contiguous or requires a gradient.</exception>
    /// <exception cref="InvalidOperationException">A state is to be updated while gradients are recorded.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static (Tensor output, Tensor? finalState) Gla(Tensor q, Tensor k, Tensor v, Tensor g,
        LinearAttentionMode mode = LinearAttentionMode.Auto, double? scale = null, Tensor? initialState = null,
        bool outputFinalState = false, Tensor? cuSeqlens = null, bool reverse = false, bool updateState = false)
    {
        var sequences = CheckGla(q, k, v, g, initialState, cuSeqlens);
        var factor = scale ?? 1 / Math.Sqrt(q.Size(3));
        if (!double.IsFinite(factor))
            throw new ArgumentException($"scale must be a finite number, but is {factor}.", nameof(scale));

        var problem = GlaProblem.Of(q, k, v, g, initialState, sequences);
        if (updateState)
            CheckUpdate(initialState, problem.Gradients);
        var (choice, missing, small) = GlaPlan.Of(problem, mode);
        if (missing is not null)
            CudaRuntime.FallBack(nameof(Gla), missing);

        var inPlace = updateState && choice.Mode == LinearAttentionMode.FusedRecurrent && choice.Path != TorchPath;
        var (output, finalState) = RunGla(choice, small, GlaParts.Of(problem), q, k, v, g, factor, initialState, sequences,
            reverse, outputFinalState || (updateState && !inPlace), inPlace);
        if (!updateState || inPlace)
            return (output, finalState);
        using (finalState)
            initialState!.copy_(finalState!);
        return (output, outputFinalState ? initialState : null);
    }

    /// <summary>How <see cref="Gla"/> runs for such queries: what <see cref="LinearAttentionMode.Auto"/> takes and why.</summary>
    /// <param name="q">The queries [B, T, H, K]: device, sizes, dtype, and whether a gradient is recorded. The rest of the call
    /// is taken to be like them: V = K, and decays in their dtype.</param>
    /// <param name="mode">The mode that <see cref="Gla"/> is called with.</param>
    /// <param name="cuSeqlens">The packed sequences that <see cref="Gla"/> is called with.</param>
    /// <exception cref="ArgumentException">q has no such shape, or cuSeqlens does not fit it.</exception>
    public static ModeChoice PlanGla(Tensor q, LinearAttentionMode mode = LinearAttentionMode.Auto, Tensor? cuSeqlens = null)
    {
        Guard.Shape(q, "[B, T, H, K]", [-1, -1, -1, -1]);
        return GlaPlan.Of(GlaProblem.Of(q, Sequences.Of(q.Size(0), q.Size(1), cuSeqlens)), mode, explain: true).Choice;
    }

    private static Sequences CheckGla(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initialState, Tensor? cuSeqlens)
    {
        Guard.Shape(q, "[B, T, H, K]", [-1, -1, -1, -1]);
        Guard.NotEmpty(q, "[B, T, H, K]");
        var (batch, time, heads, keySize) = (q.Size(0), q.Size(1), q.Size(2), q.Size(3));
        Guard.Shape(k, "[B, T, Hkv, K]", [batch, time, -1, keySize]);
        Guard.NotEmpty(k, "[B, T, Hkv, K]");
        var kvHeads = k.Size(2);
        Guard.Divides(heads, kvHeads, "H of q", "Hkv of k");
        Guard.Shape(v, "[B, T, Hkv, V]", [batch, time, kvHeads, -1]);
        Guard.NotEmpty(v, "[B, T, Hkv, V]");
        Guard.Shape(g, "[B, T, Hkv, K]", [batch, time, kvHeads, keySize]);
        Guard.Floating(q);
        Guard.SameDtype(q, nameof(q), (k, nameof(k)), (v, nameof(v)));
        if (g.dtype != ScalarType.Float32)
            Guard.SameDtype(q, nameof(q), (g, nameof(g)));
        Guard.Float32IfGiven(initialState);
        Guard.Operands(q, nameof(q), (k, nameof(k)), (v, nameof(v)), (g, nameof(g)), (initialState, nameof(initialState)));
        var sequences = Sequences.Of(batch, time, cuSeqlens);
        Guard.ShapeIfGiven(initialState, "[S, H, K, V]", [sequences.Count, heads, keySize, v.Size(3)]);
        return sequences;
    }

    /// <summary>As planned, with checked arguments; the state is updated in place only by the recurrence's kernels.</summary>
    private static (Tensor output, Tensor? finalState) RunGla(ModeChoice choice, GlaSmallTile? small, GlaParts parts, Tensor q,
        Tensor k, Tensor v, Tensor g, double scale, Tensor? initialState, Sequences sequences, bool reverse,
        bool outputFinalState, bool updateState)
    {
        if (small is not null)
            return GlaSmallFunction.Run(small, q, k, v, g, scale, initialState, sequences, reverse, outputFinalState);
        if (choice.Path == CpuPath)
            return GlaRecurrence.Run(q, k, v, g, scale, initialState, sequences, reverse, outputFinalState, updateState);
        if (choice.Path == CudaPath)
            return choice.Mode == LinearAttentionMode.FusedRecurrent
                ? GlaRecurrentCudaFunction.Run(
                    q, k, v, g, scale, initialState, sequences, reverse, outputFinalState, updateState)
                : RunGlaChunks(parts, q, k, v, g, scale, initialState, sequences, reverse, outputFinalState,
                    segments: choice.Mode == LinearAttentionMode.FusedChunk ? 1 : null);
        if (choice.Mode == LinearAttentionMode.FusedRecurrent)
            return GlaRecurrent.Run(q, k, v, g, scale, initialState, sequences, reverse, outputFinalState);

        using var scope = NewDisposeScope();
        var order = reverse ? sequences.ReversedOrder(q.device) : null;
        var (output, finalState) = GlaChunk.Run(Ordered(q, order), Ordered(k, order), Ordered(v, order), Ordered(g, order),
            scale, initialState, sequences, fused: choice.Mode == LinearAttentionMode.FusedChunk);
        return (Ordered(output, order).MoveToOuterDisposeScope(),
            outputFinalState ? finalState.MoveToOuterDisposeScope() : null);
    }

    /// <summary>On the CUDA kernels over chunks. A method of its own: only its calls pay for what the lambda captures.</summary>
    private static (Tensor output, Tensor? finalState) RunGlaChunks(GlaParts parts, Tensor q, Tensor k, Tensor v, Tensor g,
        double scale, Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState, int? segments) =>
        parts.Run(q, k, v, g, initialState, (q, k, v, g, initialState) =>
            GlaChunkFunction.Run(q, k, v, g, scale, initialState, sequences, reverse, outputFinalState, segments));

    /// <summary>Checks a state that is to be written over, whose dtype and shape are checked.</summary>
    private static void CheckUpdate(Tensor? initialState, bool gradients)
    {
        if (initialState is null)
            throw new ArgumentException("updateState writes over initialState, but there is none. Give one, of zeros at the "
                + "beginning.", nameof(initialState));
        if (!initialState.is_contiguous())
            throw new ArgumentException("initialState must be contiguous to be updated in place, but has strides "
                + $"[{string.Join(", ", initialState.stride())}]. Start with initialState.contiguous().", nameof(initialState));
        if (initialState.requires_grad)
            throw new ArgumentException("initialState requires a gradient, so it cannot be updated in place. Give "
                + "initialState.detach(), or leave updateState out.", nameof(initialState));
        if (gradients)
            throw new InvalidOperationException("updateState would write over what the backward pass of this call needs. Call it "
                + "under torch.no_grad(), or leave updateState out.");
    }

    /// <summary>The tokens of [B, T, ...] in the given order, if any.</summary>
    private static Tensor Ordered(Tensor x, Tensor? order) =>
        order is null ? x : x.flatten(0, 1).index_select(0, order).view_as(x);
}
