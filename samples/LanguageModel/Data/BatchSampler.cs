using static TorchSharp.torch;

namespace LanguageModel.Data;

/// <summary>
/// Cuts sequences out of the training text. What a batch holds depends on the seed and the batch's number alone, which is why a
/// run that was stopped continues with the same data.
/// </summary>
internal sealed class BatchSampler(ReadOnlyMemory<int> tokens, int batch, int length, long seed)
{
    /// <summary>Token numbers, [batch, length], int64 on the CPU.</summary>
    public Tensor Batch(long number)
    {
        var ids = new long[batch * length];
        for (int row = 0; row < batch; row++)
            Copy(tokens.Span.Slice(Offset(number, row), length), ids.AsSpan(row * length, length));
        return tensor(ids, [batch, length]);
    }

    /// <summary>Sequences that follow each other, evenly spread if there are more than <paramref name="count"/>.</summary>
    public static IEnumerable<ReadOnlyMemory<int>> Windows(ReadOnlyMemory<int> tokens, int length, int count)
    {
        int available = tokens.Length / length;
        int used = Math.Min(count, available);
        for (int i = 0; i < used; i++)
            yield return tokens.Slice((int)((long)i * available / used) * length, length);
    }

    /// <summary>Token numbers, [rows, length], int64 on the CPU.</summary>
    public static Tensor Stack(IReadOnlyList<ReadOnlyMemory<int>> rows)
    {
        int length = rows[0].Length;
        var ids = new long[rows.Count * length];
        for (int row = 0; row < rows.Count; row++)
            Copy(rows[row].Span, ids.AsSpan(row * length, length));
        return tensor(ids, [rows.Count, length]);
    }

    private int Offset(long number, int row)
    {
        ulong bits = Mix(Mix(Mix((ulong)seed) ^ (ulong)number) ^ (ulong)row);
        return (int)(bits % (ulong)(tokens.Length - length + 1));
    }

    /// <summary>The finaliser of SplitMix64 (Steele, Lea and Flood 2014): neighbouring inputs give unrelated outputs.</summary>
    private static ulong Mix(ulong x)
    {
        x += 0x9E3779B97F4A7C15;
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
        return x ^ (x >> 31);
    }

    private static void Copy(ReadOnlySpan<int> from, Span<long> to)
    {
        for (int i = 0; i < from.Length; i++)
            to[i] = from[i];
    }
}
