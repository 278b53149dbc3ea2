using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Kernels.Conv;

/// <summary>
/// The depthwise causal convolution y[t] = f(bias + sum over w of weight[w] * x[t - (W - 1) + w]), f = identity or SiLU, over
/// sequences that lie one after the other. An instance is one call.
/// </summary>
/// <remarks>
/// Vectors run over the channels, so accesses are contiguous; E must be a multiple of <see cref="Lanes"/>. Cores share the work
/// by blocks of tokens whose borders depend on the sizes alone. Backward computes the pre-activation again instead of storing it.
/// </remarks>
internal sealed unsafe class CausalConvCpu
{
    public const int Lanes = 16;
    private const int MinBlock = 64;

    public required int[] Offsets { get; init; } // [S + 1], in tokens
    public required int Channels { get; init; }
    public required int Width { get; init; }
    public required bool Silu { get; init; }

    public required float* X { get; init; }      // [tokens, E]
    public required int RowX { get; init; }      // floats from a token of x to the next
    public required float* Weight { get; init; } // [W, E]
    public required float* Bias { get; init; }   // [E] or null
    public required float* InitialState { get; init; } // [S, W - 1, E], oldest first, or null

    public float* Y { get; init; }          // [tokens, E]
    public float* FinalState { get; init; } // [S, W - 1, E] or null

    public float* GradY { get; init; }            // [tokens, E] or null
    public float* GradFinalState { get; init; }   // [S, W - 1, E] or null
    public float* GradX { get; init; }            // [tokens, E]
    public float* GradInitialState { get; init; } // [S, W - 1, E] or null
    public float* GradWeights { get; init; }      // [blocks, W + 1, E]: per block, the bias last; the caller adds them up

    private int Past => Width - 1;

    private int Tokens => Offsets[^1];

    /// <summary>Tokens that a core takes at once. At least W: the overlap of backward's blocks stays a fraction.</summary>
    private int Block => Math.Max(MinBlock, Width);

    /// <summary>The number of partial sums that backward leaves in <see cref="GradWeights"/>.</summary>
    public static int Blocks(int tokens, int width) => (tokens + Math.Max(MinBlock, width) - 1) / Math.Max(MinBlock, width);

    public void Forward()
    {
        CpuParallel.For(Blocks(Tokens, Width), block =>
        {
            var rows = stackalloc float*[Width];
            var zeros = Zeros(CpuScratch.Take(Channels));
            foreach (var piece in Pieces(block))
                for (var t = piece.From; t < piece.To; t++)
                {
                    var y = Y + (long)(piece.Start + t) * Channels;
                    GatherRows(piece, t, rows, zeros);
                    for (var e = 0; e < Channels; e += Lanes)
                    {
                        var sum = PreActivation(rows, e);
                        if (Silu)
                            sum *= VectorMath.Sigmoid(sum);
                        sum.Store(y + e);
                    }
                }
        });
        if (FinalState != null)
            StoreFinalState();
    }

    public void Backward()
    {
        if (GradInitialState != null)
            PassFinalGradientThrough();
        CpuParallel.For(Blocks(Tokens, Width), block =>
        {
            var rows = stackalloc float*[Width];
            var zeros = Zeros(CpuScratch.Take((1 + Block + Past) * Channels));
            var grad = zeros + Channels; // [block + W - 1, E]: the gradient of the pre-activation
            var gradWeight = GradWeights + (long)block * (Width + 1) * Channels;
            new Span<float>(gradWeight, (Width + 1) * Channels).Clear();
            foreach (var piece in Pieces(block))
            {
                // An input reaches the W - 1 outputs after it, too: the next block computes those again.
                var to = Math.Min(piece.To + Past, piece.Length);
                for (var t = piece.From; t < to; t++)
                {
                    GatherRows(piece, t, rows, zeros);
                    GradPreActivation(piece.Start + t, rows, grad + (t - piece.From) * Channels);
                    if (t < piece.To)
                        AddGradWeight(grad + (t - piece.From) * Channels, rows, gradWeight);
                }
                for (var t = piece.From; t < piece.To; t++)
                    StoreGradInput(piece, t, grad);
                if (piece.From == 0 && GradInitialState != null)
                    AddGradInitialState(piece, grad);
            }
        });
    }

    /// <summary>The part of a sequence that lies in a block: its tokens From to To - 1, counted from its start.</summary>
    private readonly record struct Piece(int Sequence, int Start, int Length, int From, int To);

    private List<Piece> Pieces(int block)
    {
        int from = block * Block, to = Math.Min(from + Block, Tokens);
        var pieces = new List<Piece>();
        var s = Array.BinarySearch(Offsets, from);
        for (s = s < 0 ? ~s - 1 : s; s < Offsets.Length - 1 && Offsets[s] < to; s++)
        {
            int start = Offsets[s], end = Offsets[s + 1];
            if (Math.Max(start, from) < Math.Min(end, to))
                pieces.Add(new Piece(s, start, end - start, Math.Max(from - start, 0), Math.Min(end, to) - start));
        }
        return pieces;
    }

    private float* Zeros(float* memory)
    {
        new Span<float>(memory, Channels).Clear();
        return memory;
    }

    /// <summary>The W inputs that output t sees, taken from the state before the first token.</summary>
    private void GatherRows(Piece piece, int t, float** rows, float* zeros)
    {
        for (var w = 0; w < Width; w++)
        {
            var input = t - Past + w;
            rows[w] = input >= 0 ? X + (long)(piece.Start + input) * RowX
                : InitialState != null ? InitialState + ((long)piece.Sequence * Past + input + Past) * Channels
                : zeros;
        }
    }

    private Vector512<float> PreActivation(float** rows, int e)
    {
        var sum = Bias != null ? Vector512.Load(Bias + e) : Vector512<float>.Zero;
        for (var w = 0; w < Width; w++)
            sum = Vector512.FusedMultiplyAdd(Vector512.Load(Weight + w * Channels + e), Vector512.Load(rows[w] + e), sum);
        return sum;
    }

    private void GradPreActivation(int token, float** rows, float* grad)
    {
        if (GradY == null)
        {
            new Span<float>(grad, Channels).Clear();
            return;
        }
        var gradY = GradY + (long)token * Channels;
        for (var e = 0; e < Channels; e += Lanes)
        {
            var value = Vector512.Load(gradY + e);
            if (Silu)
            {
                var sum = PreActivation(rows, e);
                var gate = VectorMath.Sigmoid(sum);
                value *= gate * Vector512.FusedMultiplyAdd(sum, Vector512<float>.One - gate, Vector512<float>.One);
            }
            value.Store(grad + e);
        }
    }

    private void AddGradWeight(float* grad, float** rows, float* gradWeight)
    {
        for (var w = 0; w <= Width; w++, gradWeight += Channels)
            for (var e = 0; e < Channels; e += Lanes)
            {
                var input = w < Width ? Vector512.Load(rows[w] + e) : Vector512<float>.One; // the bias sees 1
                Vector512.FusedMultiplyAdd(Vector512.Load(grad + e), input, Vector512.Load(gradWeight + e)).Store(gradWeight + e);
            }
    }

    private void StoreGradInput(Piece piece, int t, float* grad)
    {
        var gradX = GradX + (long)(piece.Start + t) * Channels;
        var kept = t - (piece.Length - Past); // this input's place in the final state
        var gradKept = kept >= 0 && GradFinalState != null
            ? GradFinalState + ((long)piece.Sequence * Past + kept) * Channels : null;
        var last = Math.Min(Past, piece.Length - 1 - t); // the last output that sees it, counted from t
        for (var e = 0; e < Channels; e += Lanes)
        {
            var sum = gradKept != null ? Vector512.Load(gradKept + e) : Vector512<float>.Zero;
            for (var i = 0; i <= last; i++)
                sum = Vector512.FusedMultiplyAdd(Vector512.Load(Weight + (Past - i) * Channels + e),
                    Vector512.Load(grad + (t - piece.From + i) * Channels + e), sum);
            sum.Store(gradX + e);
        }
    }

    /// <summary>State row j is seen by the outputs t = j - w, w from 0 to j.</summary>
    private void AddGradInitialState(Piece piece, float* grad)
    {
        for (var j = 0; j < Past; j++)
        {
            var state = GradInitialState + ((long)piece.Sequence * Past + j) * Channels;
            for (var e = 0; e < Channels; e += Lanes)
            {
                var sum = Vector512.Load(state + e);
                for (var t = 0; t <= Math.Min(j, piece.Length - 1); t++)
                    sum = Vector512.FusedMultiplyAdd(
                        Vector512.Load(Weight + (j - t) * Channels + e), Vector512.Load(grad + t * Channels + e), sum);
                sum.Store(state + e);
            }
        }
    }

    private void StoreFinalState()
    {
        for (var s = 0; s < Offsets.Length - 1; s++)
            for (var j = 0; j < Past; j++)
            {
                int length = Offsets[s + 1] - Offsets[s], input = length - Past + j;
                var row = new Span<float>(FinalState + ((long)s * Past + j) * Channels, Channels);
                if (input >= 0)
                    new Span<float>(X + (long)(Offsets[s] + input) * RowX, Channels).CopyTo(row);
                else if (InitialState != null)
                    new Span<float>(InitialState + ((long)s * Past + input + Past) * Channels, Channels).CopyTo(row);
                else
                    row.Clear();
            }
    }

    /// <summary>A sequence shorter than the state keeps the newer part of it, whose gradient comes straight through.</summary>
    private void PassFinalGradientThrough()
    {
        for (var s = 0; s < Offsets.Length - 1; s++)
            for (var j = 0; j < Past; j++)
            {
                var kept = j - (Offsets[s + 1] - Offsets[s]);
                var row = new Span<float>(GradInitialState + ((long)s * Past + j) * Channels, Channels);
                if (kept >= 0 && GradFinalState != null)
                    new Span<float>(GradFinalState + ((long)s * Past + kept) * Channels, Channels).CopyTo(row);
                else
                    row.Clear();
            }
    }
}
