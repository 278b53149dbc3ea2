using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// The tokens of all sequences ordered by step: first the first tokens of all sequences, then the second ones, and so on.
/// Sequences are ordered from long to short, so those that have a token at a step are always the first ones.
/// </summary>
internal sealed class TimeMajor
{
    private readonly long[] _tokens;    // row -> token
    private readonly long[] _sequences; // place -> sequence
    private readonly int[] _starts;     // [Steps + 1], in rows

    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="reverse">Whether step 0 of a sequence is its last token.</param>
    public TimeMajor(Sequences sequences, bool reverse)
    {
        var order = Enumerable.Range(0, sequences.Count).OrderByDescending(sequences.Length).ToArray(); // stable
        _sequences = Array.ConvertAll(order, s => (long)s);
        _tokens = new long[sequences.Tokens];
        _starts = new int[sequences.MaxLength + 1];
        var (row, active) = (0, order.Length);
        for (var t = 0; t < Steps; t++)
        {
            while (sequences.Length(order[active - 1]) <= t)
                active--;
            foreach (var s in order.AsSpan(0, active))
                _tokens[row++] = reverse ? sequences.End(s) - 1 - t : sequences.Start(s) + t;
            _starts[t + 1] = row;
        }
    }

    /// <summary>The tokens of the longest sequence.</summary>
    public int Steps => _starts.Length - 1;

    /// <summary>S.</summary>
    public int SequenceCount => _sequences.Length;

    /// <summary>[B, T, ...] to a fresh [rows, ...].</summary>
    public Tensor FromTokens(Tensor x) => x.flatten(0, 1).index_select(0, Index(_tokens, x));

    /// <summary>[rows, ...] to [B, T, ...], where <paramref name="like"/> has B and T.</summary>
    public Tensor ToTokens(Tensor rows, Tensor like) =>
        rows.index_select(0, Index(Inverse(_tokens), rows)).unflatten(0, like.size(0), like.size(1));

    /// <summary>[S, ...] to a fresh tensor in this order.</summary>
    public Tensor FromSequences(Tensor x) => x.index_select(0, Index(_sequences, x));

    /// <summary>Undoes <see cref="FromSequences"/>.</summary>
    public Tensor ToSequences(Tensor x) => x.index_select(0, Index(Inverse(_sequences), x));

    /// <summary>The rows of a step: a view.</summary>
    public Tensor At(Tensor rows, int step) => rows.narrow(0, _starts[step], _starts[step + 1] - _starts[step]);

    /// <summary>What belongs to the sequences that have a token at a step: a view.</summary>
    public Tensor Active(Tensor perSequence, int step) => perSequence.narrow(0, 0, _starts[step + 1] - _starts[step]);

    private static Tensor Index(long[] values, Tensor on) => tensor(values, device: on.device);

    private static long[] Inverse(long[] permutation)
    {
        var inverse = new long[permutation.Length];
        for (var i = 0; i < permutation.Length; i++)
            inverse[permutation[i]] = i;
        return inverse;
    }
}
