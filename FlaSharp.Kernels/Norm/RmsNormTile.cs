using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Norm;

/// <summary>How a block of Norm/rms_norm_*.cu shares lines among its threads: the constants of fla/rms_norm.cuh.</summary>
/// <param name="Lanes">Threads for a line.</param>
/// <param name="PerThread">Columns of a line for each of them.</param>
/// <param name="Threads">Of a block.</param>
/// <param name="IsAligned">Whether threads read and write 16 bytes at once, or else one element.</param>
internal sealed record RmsNormTile(int Lanes, int PerThread, int Threads, bool IsAligned)
{
    /// <summary>Lines up to this size have a tile.</summary>
    public const int MaxSize = 16384;

    // A warp for each line up to 1024, then a block.
    private static readonly RmsNormTile[] s_aligned =
    [
        new(8, 8, 128, true), new(16, 8, 128, true), new(32, 8, 128, true), new(32, 16, 128, true), new(32, 32, 128, true),
        new(128, 16, 128, true), new(256, 16, 256, true), new(512, 16, 512, true),
        new(512, 24, 512, true), new(1024, 16, 1024, true),
    ];
    private static readonly RmsNormTile[] s_unaligned =
    [
        new(8, 8, 128, false), new(32, 32, 128, false), new(512, 16, 512, false), new(512, 24, 512, false),
        new(1024, 16, 1024, false),
    ];

    public static IEnumerable<RmsNormTile> All => s_aligned.Concat(s_unaligned);

    /// <summary>Lines that a block works on at once.</summary>
    public int Lines => Threads / Lanes;

    private int MaxColumns => Lanes * PerThread;

    /// <summary>The smallest tile for lines of a size, which is at most <see cref="MaxSize"/>.</summary>
    public static RmsNormTile Of(int size, bool isAligned)
    {
        foreach (var tile in isAligned ? s_aligned : s_unaligned)
            if (size <= tile.MaxColumns)
                return tile;
        throw new ArgumentOutOfRangeException(nameof(size), size, $"There is no tile for lines of more than {MaxSize}.");
    }

    /// <param name="pass">"forward" or "backward".</param>
    /// <param name="element">Of x.</param>
    /// <param name="form">What the norm comes with.</param>
    /// <param name="stream">Of the residual; without one as <paramref name="element"/>.</param>
    public KernelVariant Variant(string pass, ElementType element, RmsNormForm form, ElementType stream) =>
        new($"Norm/rms_norm_{pass}.cu", $"rms_norm_{pass}",
            [
                $"ELEMENT={element.Name()}", $"LANES={Lanes}", $"PER_THREAD={PerThread}", $"THREADS={Threads}",
                $"VECTOR={(IsAligned ? 16 / element.Bytes() : 1)}", $"STREAM={stream.Name()}",
                $"GATED={(form == RmsNormForm.Gated ? 1 : 0)}", $"ADDED={(form == RmsNormForm.Added ? 1 : 0)}",
            ],
            Threads, SharedBytes: 0);
}
