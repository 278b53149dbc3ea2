using TorchSharp;
using static TorchSharp.torch;

namespace DropIn;

/// <summary>
/// Associative recall: a sequence shows pairs of key and value, then asks for each value by its key in another order. A model
/// that cannot look back gets no further than guessing.
/// </summary>
internal static class RecallTask
{
    public const int Pairs = 8;
    public const int Vocabulary = 2 * Symbols;
    public const int Length = 4 * Pairs;

    private const int Symbols = 16;
    private const long Ignored = -100;

    /// <summary>Tokens [batch, Length], and for each the next token where it is an answer, -100 elsewhere.</summary>
    public static (Tensor ids, Tensor targets) Batch(int batch, Random random)
    {
        long[] ids = new long[batch * Length];
        long[] targets = new long[ids.Length];
        Array.Fill(targets, Ignored);
        int[] keys = [.. Enumerable.Range(0, Symbols)];
        int[] order = [.. Enumerable.Range(0, Pairs)];
        for (int row = 0; row < batch; row++)
        {
            random.Shuffle(keys);
            random.Shuffle(order);
            Span<long> sequence = ids.AsSpan(row * Length, Length);
            Span<long> answers = targets.AsSpan(row * Length, Length);
            for (int i = 0; i < Pairs; i++)
            {
                sequence[2 * i] = keys[i];
                sequence[2 * i + 1] = Symbols + random.Next(Symbols);
            }

            for (int i = 0; i < Pairs; i++)
            {
                int question = 2 * (Pairs + i);
                sequence[question] = sequence[2 * order[i]];
                sequence[question + 1] = sequence[2 * order[i] + 1];
                answers[question] = sequence[question + 1];
            }
        }

        return (tensor(ids, [batch, Length]), tensor(targets, [batch, Length]));
    }
}
