namespace FlaSharp.Kernels.Gla;

/// <summary>
/// Gated linear attention as its recurrence, in float32: S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T, o_t = scale S_t^T q_t
/// (Yang et al. 2023, arXiv:2312.06635, equation 3). All arrays are contiguous.
/// </summary>
internal static unsafe class GlaRecurrenceCpu
{
    /// <param name="call">The sizes.</param>
    /// <param name="q">[tokens, H, K].</param>
    /// <param name="k">[tokens, Hkv, K], as <paramref name="g"/>.</param>
    /// <param name="v">[tokens, Hkv, V].</param>
    /// <param name="g">Log-decays; -inf resets.</param>
    /// <param name="initialState">[S, H, K, V], or null for zeros.</param>
    /// <param name="output">[tokens, H, V].</param>
    /// <param name="finalState">[S, H, K, V], or null if unwanted.</param>
    /// <param name="checkpoints">[CheckpointCount, H, K, V] for the backward pass, or null if unwanted.</param>
    public static void Forward(GlaCall call, float* q, float* k, float* v, float* g, float* initialState,
        float* output, float* finalState, float* checkpoints) =>
        new GlaValueScan
        {
            Call = call,
            Decay = KvRows(call, g, call.KeySize),
            Write = KvRows(call, k, call.KeySize),
            Value = KvRows(call, v, call.ValueSize),
            Read = QueryRows(call, q, call.KeySize, call.Scale),
            Output = QueryRows(call, output, call.ValueSize),
            InitialState = initialState,
            FinalState = finalState,
            Checkpoints = checkpoints,
        }.Run();

    /// <summary>The gradient of v, for each query head.</summary>
    /// <param name="call">The sizes.</param>
    /// <param name="q">As in <see cref="Forward"/>, as <paramref name="k"/> and <paramref name="g"/>.</param>
    /// <param name="k">See <paramref name="q"/>.</param>
    /// <param name="g">See <paramref name="q"/>.</param>
    /// <param name="outputGradient">[tokens, H, V].</param>
    /// <param name="finalStateGradient">[S, H, K, V], or null for zeros.</param>
    /// <param name="valueGradient">[tokens, H, V].</param>
    public static void BackwardValue(GlaCall call, float* q, float* k, float* g, float* outputGradient, float* finalStateGradient,
        float* valueGradient) =>
        new GlaValueScan
        {
            Call = call,
            Decay = KvRows(call, g, call.KeySize),
            Write = QueryRows(call, q, call.KeySize, call.Scale),
            Value = QueryRows(call, outputGradient, call.ValueSize),
            Read = KvRows(call, k, call.KeySize),
            Output = QueryRows(call, valueGradient, call.ValueSize),
            InitialState = finalStateGradient,
            Backward = true,
        }.Run();

    /// <summary>The gradients of q, k, g and the initial state, for each query head.</summary>
    /// <param name="call">The sizes.</param>
    /// <param name="q">As in <see cref="Forward"/>, as everything up to <paramref name="checkpoints"/>.</param>
    /// <param name="k">See <paramref name="q"/>.</param>
    /// <param name="v">See <paramref name="q"/>.</param>
    /// <param name="g">See <paramref name="q"/>.</param>
    /// <param name="initialState">See <paramref name="q"/>.</param>
    /// <param name="checkpoints">What <see cref="Forward"/> wrote.</param>
    /// <param name="outputGradient">[tokens, H, V].</param>
    /// <param name="finalStateGradient">[S, H, K, V], or null for zeros.</param>
    /// <param name="queryGradient">[tokens, H, K], as the next two.</param>
    /// <param name="keyGradient">See <paramref name="queryGradient"/>.</param>
    /// <param name="decayGradient">See <paramref name="queryGradient"/>.</param>
    /// <param name="initialStateGradient">[S, H, K, V], or null if unwanted.</param>
    public static void BackwardKey(GlaCall call, float* q, float* k, float* v, float* g, float* initialState, float* checkpoints,
        float* outputGradient, float* finalStateGradient, float* queryGradient, float* keyGradient, float* decayGradient,
        float* initialStateGradient) =>
        new GlaKeyScan
        {
            Call = call,
            Query = QueryRows(call, q, call.KeySize, call.Scale),
            Key = KvRows(call, k, call.KeySize),
            Value = KvRows(call, v, call.ValueSize),
            Decay = KvRows(call, g, call.KeySize),
            OutputGradient = QueryRows(call, outputGradient, call.ValueSize),
            InitialState = initialState,
            FinalStateGradient = finalStateGradient,
            Checkpoints = checkpoints,
            QueryGradient = QueryRows(call, queryGradient, call.KeySize, call.Scale),
            KeyGradient = QueryRows(call, keyGradient, call.KeySize),
            DecayGradient = QueryRows(call, decayGradient, call.KeySize),
            InitialStateGradient = initialStateGradient,
        }.Run();

    private static HeadRows QueryRows(GlaCall call, float* data, int size, float scale = 1) =>
        new(data, call.Heads, call.Heads, size, scale);

    private static HeadRows KvRows(GlaCall call, float* data, int size) => new(data, call.KvHeads, call.Heads, size);
}
