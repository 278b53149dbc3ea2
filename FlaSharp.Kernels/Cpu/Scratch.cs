using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Cpu;

/// <summary>Aligned working memory of one worker, handed out piece by piece. Its content is undefined.</summary>
internal unsafe ref struct Scratch : IDisposable
{
    private const int Lanes = 16; // pieces start at whole vectors, which are whole cache lines

    private readonly float* _start;
    private float* _next;

    public Scratch(long floats)
    {
        _start = (float*)NativeMemory.AlignedAlloc((nuint)floats * sizeof(float), Lanes * sizeof(float));
        _next = _start;
    }

    /// <summary>What <see cref="Take"/> uses up for a piece.</summary>
    public static long Padded(long floats) => (floats + Lanes - 1) / Lanes * Lanes;

    public float* Take(long floats)
    {
        var piece = _next;
        _next += Padded(floats);
        return piece;
    }

    public readonly void Dispose() => NativeMemory.AlignedFree(_start);
}
