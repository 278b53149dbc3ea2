namespace FlaSharp.Kernels.Gla;

/// <summary>The cut of each sequence into parts that blocks of a GPU work on at the same time.</summary>
/// <param name="Count">Parts of a sequence.</param>
/// <param name="Chunks">Chunks in each but the last.</param>
internal readonly record struct GlaSegments(int Count, int Chunks)
{
    // The states at the segments' ends cost a second pass over keys, values and decays: on an H100 a cut of 64 heads of 2,048 tokens
    // takes twice as long as none, a cut of 32 heads of 16,384 tokens half as long.
    private const double BusyEnough = 0.4;
    private const int FewestChunks = 8;

    /// <summary>As many segments as give almost each multiprocessor a block, if whole sequences would leave many idle.</summary>
    /// <param name="blocks">Blocks without a cut.</param>
    /// <param name="chunks">Of the longest sequence.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static GlaSegments For(long blocks, int chunks, int multiprocessors)
    {
        if (blocks == 0 || IsBusy(blocks, multiprocessors))
            return Of(1, chunks);
        var wanted = multiprocessors / blocks; // one wave: a few blocks in a second one would take as long again
        return Of((int)Math.Clamp(wanted, 1, Math.Max(1, chunks / FewestChunks)), chunks);
    }

    /// <summary>Whether so many blocks keep the GPU busy without a cut.</summary>
    public static bool IsBusy(long blocks, int multiprocessors) => blocks >= BusyEnough * multiprocessors;

    /// <summary>At most <paramref name="count"/> segments of equal length, the last one perhaps shorter.</summary>
    public static GlaSegments Of(int count, int chunks)
    {
        var length = Math.Max(1, (chunks + count - 1) / count);
        return new GlaSegments(Math.Max(1, (chunks + length - 1) / length), length);
    }
}
