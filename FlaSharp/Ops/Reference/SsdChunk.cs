using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// The state space duality of Mamba-2 in the chunked matrix form (Dao and Gu 2024, arXiv:2405.21060), in plain TorchSharp operations
/// with their autograd, on any device: h_t = exp(l_t) h_{t-1} + dt_t x_t b_t^T and y_t = h_t c_t.
/// </summary>
/// <remarks>
/// Decays are exp of sums of log-decays between two tokens, never of a sum's negative, so they cannot overflow; the sums are float64
/// so that a strong decay does not cost the later, weaker ones their digits.
/// </remarks>
internal static class SsdChunk
{
    private const int MaxChunkSize = 64;

    /// <param name="x">float32 [B, T, H, P].</param>
    /// <param name="dt">float32 [B, T, H], the step sizes.</param>
    /// <param name="logDecay">float32 [B, T, H], at most 0.</param>
    /// <param name="b">float32 [B, T, G, N]; head h reads group h / (H / G).</param>
    /// <param name="c">float32 [B, T, G, N].</param>
    /// <param name="initialState">float32 [S, H, P, N], or null for zero.</param>
    /// <returns>The output [B, T, H, P] and the final states [S, H, P, N].</returns>
    public static (Tensor output, Tensor finalState) Run(
        Tensor x, Tensor dt, Tensor logDecay, Tensor b, Tensor c, Tensor? initialState, Sequences sequences)
    {
        using var scope = NewDisposeScope();
        var (heads, headSize, groups, stateSize) = (x.size(2), x.size(3), b.size(2), b.size(3));
        var layout = new ChunkLayout(sequences, MaxChunkSize);
        var inputs = layout.Cut(x * dt.unsqueeze(-1));                         // [chunks, C, H, P]
        var sums = layout.Cut(logDecay).to(ScalarType.Float64).cumsum(1);      // [chunks, C, H]
        var bt = layout.Cut(b).transpose(1, 2);                                // [chunks, G, C, N]
        var ct = layout.Cut(c).transpose(1, 2);

        // Within the chunks. The heads of a group share the products of its b and c.
        var headSums = sums.transpose(1, 2);                                   // [chunks, H, C]
        var future = ones(layout.Size, layout.Size, dtype: ScalarType.Bool, device: x.device).triu(1);
        var decay = Exp((headSums.unsqueeze(3) - headSums.unsqueeze(2)).masked_fill(future, double.NegativeInfinity));
        var scores = ct.matmul(bt.transpose(2, 3)).unsqueeze(2) * decay.unflatten(1, groups, -1);
        var own = scores.flatten(1, 2).matmul(inputs.transpose(1, 2)).transpose(1, 2);

        // From chunk to chunk.
        var last = sums.narrow(1, layout.Size - 1, 1);
        var toEnd = (inputs * Exp(last - sums).unsqueeze(-1)).unflatten(2, groups, -1).flatten(3, 4);
        var gains = layout.SplitLevels(toEnd.permute(0, 2, 3, 1).matmul(bt).reshape(-1, heads, headSize, stateSize));
        var decays = layout.SplitLevels(Exp(last).reshape(-1, heads, 1, 1));
        var starts = new Tensor[layout.Levels];
        var state = layout.PassStates(
            initialState ?? zeros([sequences.Count, heads, headSize, stateSize], dtype: ScalarType.Float32, device: x.device),
            (level, start) =>
            {
                starts[level] = start;
                return (decays[level] * start).add(gains[level], HeldScalar.One);
            });
        var start = layout.JoinLevels(starts).unflatten(1, groups, -1).flatten(2, 3);
        var inherited = ct.matmul(start.transpose(2, 3)).transpose(1, 2).reshape(-1, layout.Size, heads, headSize);

        var output = layout.Join(own.add(inherited * Exp(sums).unsqueeze(-1), HeldScalar.One));
        return (output.MoveToOuterDisposeScope(), state.MoveToOuterDisposeScope());
    }

    private static Tensor Exp(Tensor logDecay) => logDecay.to(ScalarType.Float32).exp();
}
