using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// The causal convolution in TorchSharp's operations, for any device: one shifted sum per tap, differentiated by autograd.
/// </summary>
internal static class CausalConv
{
    /// <summary>Arguments as those of <see cref="FlaOps.CausalConv1d"/>, checked; weight [E, W].</summary>
    public static (Tensor output, Tensor? finalState) Run(
        Sequences sequences, Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? initialState, bool outputFinalState)
    {
        long channels = x.size(2), width = weight.size(1), past = width - 1;
        var inputs = x.to(ScalarType.Float32);
        var state = initialState?.to(ScalarType.Float32).transpose(1, 2)
            ?? zeros([sequences.Count, past, channels], ScalarType.Float32, x.device); // [S, W - 1, E]
        var rows = sequences.IsPacked ? PackedRows(sequences, state, inputs, past) : null;
        var joined = rows is null ? cat([state, inputs], 1) : null; // [B, W - 1 + T, E]

        var taps = weight.to(ScalarType.Float32);
        Tensor? sum = null;
        for (var w = 0; w < width; w++)
        {
            var term = (joined?.narrow(1, w, x.size(1)) ?? rows!.Tap(w)) * taps.select(1, w);
            sum = sum is null ? term : sum.add(term, HeldScalar.One);
        }
        if (bias is not null)
            sum = sum!.add(bias.to(ScalarType.Float32), HeldScalar.One);
        if (silu)
            sum = nn.functional.silu(sum!);

        var finalState = !outputFinalState ? null : joined?.narrow(1, x.size(1), past) ?? rows!.LastRows();
        return (sum!.to(x.dtype), finalState?.transpose(1, 2).contiguous());
    }

    private static Rows PackedRows(Sequences sequences, Tensor state, Tensor inputs, long past) =>
        new(sequences, cat([state.reshape(sequences.Count * past, inputs.size(2)), inputs.squeeze(0)], 0), (int)past);

    /// <summary>The states and the packed tokens in one table [S (W - 1) + T, E]; where each input is in it.</summary>
    private sealed class Rows(Sequences sequences, Tensor table, int past)
    {
        /// <summary>[1, T, E]: for each token the input that tap w sees.</summary>
        public Tensor Tap(int w)
        {
            var indices = new long[sequences.Tokens];
            for (var s = 0; s < sequences.Count; s++)
                for (var t = 0; t < sequences.Length(s); t++)
                    indices[sequences.Start(s) + t] = IndexOf(s, t - past + w);
            return Select(indices).unsqueeze(0);
        }

        /// <summary>[S, W - 1, E]: the final states.</summary>
        public Tensor LastRows()
        {
            var indices = new long[sequences.Count * past];
            for (var i = 0; i < indices.Length; i++)
                indices[i] = IndexOf(i / past, sequences.Length(i / past) - past + i % past);
            return Select(indices).reshape(sequences.Count, past, table.size(1));
        }

        /// <summary>The row of a sequence's input; negative inputs are in its state.</summary>
        private long IndexOf(int sequence, int input) => input >= 0
            ? (long)sequences.Count * past + sequences.Start(sequence) + input
            : (long)sequence * past + input + past;

        // Indices of one selection differ, so that its gradient, a scattered sum, has one order.
        private Tensor Select(long[] indices) => table.index_select(0, tensor(indices, ScalarType.Int64, table.device));
    }
}
