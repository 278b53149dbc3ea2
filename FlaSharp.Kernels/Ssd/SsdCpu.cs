using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Ssd;

/// <summary>
/// The state space duality of Mamba-2 (Dao and Gu 2024, arXiv:2405.21060) on the CPU in float32:
/// h_t = exp(l_t) h_{t-1} + dt_t x_t b_t^T, y_t = h_t c_t + d x_t, in chunks of <see cref="ChunkSize"/> tokens.
/// </summary>
/// <remarks>
/// With G_i the sum of l since the chunk began, S the state before it and j up to i,
/// y_i = exp(G_i) S c_i + sum_j (c_i b_j) exp(G_i - G_j) dt_j x_j + d x_i, and the state after it is
/// exp(G_last) S + sum_j exp(G_last - G_j) dt_j x_j b_j^T. Both passes first run along the sequences, a piece of work per sequence and
/// head, to get the states between the chunks, and then handle the chunks, a piece per chunk and group, where the heads share c_i b_j.
/// Nothing is summed across pieces, so results do not depend on the number of cores.
/// </remarks>
internal sealed unsafe partial class SsdCpu
{
    /// <summary>C. The products within a chunk grow with it, the states between chunks get fewer.</summary>
    public const int ChunkSize = 64;

    private const float LowestLogDecay = -1e4f; // its exponential is 0, and sums stay finite

    private readonly (int start, int end)[] _chunks;    // tokens of each chunk, sequence by sequence
    private readonly int[] _firstChunks;                // of each sequence; [S + 1]

    /// <param name="offsets">[S + 1]: sequence s holds the tokens from offsets[s] up to offsets[s + 1].</param>
    public SsdCpu(ReadOnlySpan<int> offsets)
    {
        var chunks = new List<(int, int)>();
        _firstChunks = new int[offsets.Length];
        for (var s = 0; s + 1 < offsets.Length; s++)
        {
            for (var start = offsets[s]; start < offsets[s + 1]; start += ChunkSize)
                chunks.Add((start, Math.Min(start + ChunkSize, offsets[s + 1])));
            _firstChunks[s + 1] = chunks.Count;
        }
        _chunks = [.. chunks];
    }

    public required int Heads { get; init; }
    public required int HeadSize { get; init; }
    public required int Groups { get; init; }
    public required int StateSize { get; init; }

    /// <summary>[tokens, H, P], tokens <see cref="RowX"/> apart.</summary>
    public required float* X { get; init; }

    /// <summary>Floats from a token of x to the next: more than H P in a part of a wider tensor.</summary>
    public required int RowX { get; init; }

    /// <summary>[tokens, H].</summary>
    public required float* Dt { get; init; }

    /// <summary>[tokens, H].</summary>
    public required float* LogDecay { get; init; }

    /// <summary>[tokens, G, N], tokens <see cref="RowB"/> apart.</summary>
    public required float* B { get; init; }

    /// <summary>Floats from a token of b to the next.</summary>
    public required int RowB { get; init; }

    /// <summary>[tokens, G, N], tokens <see cref="RowC"/> apart.</summary>
    public required float* C { get; init; }

    /// <summary>Floats from a token of c to the next.</summary>
    public required int RowC { get; init; }

    /// <summary>[H, P], or null.</summary>
    public float* D { get; init; }

    /// <summary>[S, H, P, N], or null.</summary>
    public float* InitialState { get; init; }

    public int ChunkCount => _chunks.Length;

    /// <summary>Floats of a buffer that holds a state per chunk and head.</summary>
    public long StateBufferSize => (long)ChunkCount * Heads * Math.Max(StateSize * PaddedHead, HeadSize * PaddedState);

    private int SequenceCount => _firstChunks.Length - 1;
    private int HeadsPerGroup => Heads / Groups;
    private int PaddedHead => (HeadSize + 15) & -16;
    private int PaddedState => (StateSize + 15) & -16;

    private float* StateOf(float* states, int chunk, int head) =>
        states + ((long)chunk * Heads + head) * Math.Max(StateSize * PaddedHead, HeadSize * PaddedState);

    /// <summary>The decays of one head within a chunk.</summary>
    private struct Decays
    {
        public float* SumHigh, SumLow;      // G as the sum of two floats: differences of large sums keep their digits
        public float* FromStart;            // exp(G_i)
        public float* ToEnd;                // exp(G_last - G_i)
        public float* Dt;                   // 0 beyond the chunk
        public float Whole;                 // exp(G_last)

        public const int Floats = 5 * ChunkSize;

        public Decays(float* memory)
        {
            SumHigh = memory;
            SumLow = memory + ChunkSize;
            FromStart = memory + 2 * ChunkSize;
            ToEnd = memory + 3 * ChunkSize;
            Dt = memory + 4 * ChunkSize;
        }
    }

    private void Load(ref Decays decays, (int start, int end) chunk, int head)
    {
        var sum = 0.0;
        for (var i = 0; i < ChunkSize; i++)
        {
            var inside = chunk.start + i < chunk.end;
            var at = (long)(chunk.start + i) * Heads + head;
            if (inside)
                sum += Math.Max(LogDecay[at], LowestLogDecay);
            decays.Dt[i] = inside ? Dt[at] : 0;
            decays.SumHigh[i] = (float)sum;
            decays.SumLow[i] = (float)(sum - decays.SumHigh[i]);
        }
        var (lastHigh, lastLow) = (Vector512.Create(decays.SumHigh[ChunkSize - 1]), Vector512.Create(decays.SumLow[ChunkSize - 1]));
        for (var i = 0; i < ChunkSize; i += 16)
        {
            var (high, low) = (Vector512.Load(decays.SumHigh + i), Vector512.Load(decays.SumLow + i));
            VectorMath.Exp(high + low).Store(decays.FromStart + i);
            VectorMath.Exp((lastHigh - high) + (lastLow - low)).Store(decays.ToEnd + i);
        }
        decays.Whole = decays.FromStart[ChunkSize - 1];
    }

    /// <summary>exp(G_i - G_j) for the 16 columns from j on; 0 where j exceeds i.</summary>
    private static Vector512<float> Gate(in Decays decays, int i, int j)
    {
        var difference = (Vector512.Create(decays.SumHigh[i]) - Vector512.Load(decays.SumHigh + j))
            + (Vector512.Create(decays.SumLow[i]) - Vector512.Load(decays.SumLow + j));
        var past = Vector512.LessThanOrEqual(Vector512<int>.Indices + Vector512.Create(j), Vector512.Create(i)).AsSingle();
        return Vector512.ConditionalSelect(past, VectorMath.Exp(difference), Vector512<float>.Zero);
    }

    /// <summary>Columns that a row's gates fill: beyond them lies what was there before.</summary>
    private static int GatedColumns(int row) => (row + 16) & -16;

    /// <summary>Copies a matrix to rows of a multiple of 16 columns, zero where there was none, each row times its factor.</summary>
    private static void Pack(float* source, long sourceRow, int rows, int columns, float* target, float* factors = null)
    {
        var padded = (columns + 15) & -16;
        for (var i = 0; i < rows; i++, source += sourceRow, target += padded)
        {
            var factor = Vector512.Create(factors == null ? 1 : factors[i]);
            for (var j = 0; j < columns; j += 16)
                (PartialVector.Load(source + j, columns - j) * factor).Store(target + j);
        }
    }

    /// <summary>Copies a matrix to its transpose with rows of a multiple of 16 columns, zero where there was none.</summary>
    private static void PackTransposed(float* source, long sourceRow, int rows, int columns, float* target, int padded)
    {
        for (var j = 0; j < columns; j++, target += padded)
        {
            for (var i = 0; i < rows; i++)
                target[i] = source[i * sourceRow + j];
            for (var i = rows; i < padded; i++)
                target[i] = 0;
        }
    }

    /// <summary>Copies the transpose of a padded matrix: [rows, padded] to [columns, rows].</summary>
    private static void UnpackTransposed(float* source, int padded, int rows, int columns, float* target)
    {
        for (var j = 0; j < columns; j++)
            for (var i = 0; i < rows; i++)
                *target++ = source[i * padded + j];
    }

    private static void Scale(float* source, float factor, int count, float* target)
    {
        for (var i = 0; i < count; i += 16)
            (Vector512.Load(source + i) * Vector512.Create(factor)).Store(target + i);
    }

    private static float Dot(float* a, float* b, int count)
    {
        var sum = Vector512<float>.Zero;
        for (var i = 0; i < count; i += 16)
            sum = Vector512.FusedMultiplyAdd(Vector512.Load(a + i), Vector512.Load(b + i), sum);
        return Vector512.Sum(sum);
    }

    private bool IsFirst(int chunk) => Array.BinarySearch(_firstChunks, chunk) >= 0;
}
