using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;
using static FlaSharp.Kernels.Cpu.PartialVector;

namespace FlaSharp.Kernels.Rotary;

/// <summary>
/// Turns pairs of x [B, T, H, K] by an angle per token and pair: (a, b) -> (a cos - b sin, b cos + a sin). Pair i of the first
/// <see cref="RotaryDim"/> features is (i, i + RotaryDim / 2), or (2i, 2i + 1) if interleaved; the other features pass through.
/// </summary>
internal readonly unsafe struct RotaryCpu
{
    public required long Batch { get; init; }

    public required long Time { get; init; }

    public required long Heads { get; init; }

    public required long HeadSize { get; init; }

    /// <summary>Even, at most <see cref="HeadSize"/>.</summary>
    public required long RotaryDim { get; init; }

    public required bool Interleaved { get; init; }

    /// <summary>Turns back: the transpose of the rotation, hence its gradient.</summary>
    public required bool Inverse { get; init; }

    /// <summary>Of x, in elements; a head's features are adjacent.</summary>
    public required (long batch, long time, long head) Strides { get; init; }

    /// <summary>0 if all rows of the batch share their angles, else T * RotaryDim / 2.</summary>
    public required long AngleBatchStride { get; init; }

    /// <param name="x">[B, T, H, K], strided.</param>
    /// <param name="cos">[T or B, T, RotaryDim / 2], dense, as is <paramref name="sin"/>.</param>
    /// <param name="y">[B, T, H, K], dense.</param>
    public void Run(float* x, float* cos, float* sin, float* y)
    {
        var self = this;
        new RowBlocks(Batch * Time, Heads * HeadSize).ForEach((first, end) =>
        {
            for (var token = first; token < end; token++)
                self.Token(token, x, cos, sin, y);
        });
    }

    private void Token(long token, float* x, float* cos, float* sin, float* y)
    {
        var (b, t) = (token / Time, token % Time);
        var angle = b * AngleBatchStride + t * (RotaryDim / 2);
        for (long h = 0; h < Heads; h++)
        {
            var source = x + b * Strides.batch + t * Strides.time + h * Strides.head;
            var target = y + (token * Heads + h) * HeadSize;
            if (Interleaved)
                RotateNeighbours(source, cos + angle, sin + angle, target);
            else
                RotateHalves(source, cos + angle, sin + angle, target);
            new ReadOnlySpan<float>(source + RotaryDim, (int)(HeadSize - RotaryDim))
                .CopyTo(new Span<float>(target + RotaryDim, (int)(HeadSize - RotaryDim)));
        }
    }

    private void RotateHalves(float* x, float* cos, float* sin, float* y)
    {
        var half = RotaryDim / 2;
        var sign = Vector512.Create(Inverse ? -1f : 1f);
        for (long i = 0; i < half; i += Vector512<float>.Count)
        {
            var (a, b) = (Load(x + i, half - i), Load(x + half + i, half - i));
            var (c, s) = (Load(cos + i, half - i), Load(sin + i, half - i) * sign);
            Store(a * c - b * s, y + i, half - i);
            Store(b * c + a * s, y + half + i, half - i);
        }
    }

    private void RotateNeighbours(float* x, float* cos, float* sin, float* y)
    {
        var sign = Inverse ? -1f : 1f;
        for (long i = 0; i < RotaryDim / 2; i++)
        {
            var (a, b) = (x[2 * i], x[2 * i + 1]);
            var (c, s) = (cos[i], sin[i] * sign);
            y[2 * i] = a * c - b * s;
            y[2 * i + 1] = b * c + a * s;
        }
    }
}
