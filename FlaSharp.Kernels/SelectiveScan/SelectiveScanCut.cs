namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>How a call is cut into blocks that keep a GPU busy.</summary>
/// <param name="IsNarrow"><see cref="SelectiveScanTile.IsNarrow"/>.</param>
/// <param name="Segments">Parts of each sequence that are worked on at the same time.</param>
/// <param name="Steps">Steps in each but the last, a multiple of <see cref="SelectiveScanTile.SavedSteps"/>.</param>
internal readonly record struct SelectiveScanCut(bool IsNarrow, int Segments, int Steps)
{
    private const int FewestSteps = 256;

    /// <summary>
    /// For the forward pass: narrow blocks where there are fewer than three wide ones for two multiprocessors; and segments, which
    /// increase the work by half, where even of the narrow ones there are no more.
    /// </summary>
    /// <param name="channels">E.</param>
    /// <param name="groups">G.</param>
    /// <param name="sequences">S.</param>
    /// <param name="length">Steps of the longest sequence.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static SelectiveScanCut Forward(long channels, long groups, long sequences, int length, int multiprocessors)
    {
        var isNarrow = 2 * sequences * Blocks(false) < 3L * multiprocessors;
        var blocks = sequences * Blocks(isNarrow);
        return Of(isNarrow, 2 * blocks >= 3L * multiprocessors ? 1 : Wanted(3L * multiprocessors, blocks, length), length);

        long Blocks(bool isNarrow) => new SelectiveScanTile(IsAligned: true, isNarrow).Blocks(channels, groups);
    }

    /// <summary>
    /// For the backward pass: segments, which increase the work by a sixth, where multiprocessors would have a single block.
    /// </summary>
    /// <inheritdoc cref="Forward"/>
    public static SelectiveScanCut Backward(long channels, long groups, long sequences, int length, int multiprocessors)
    {
        var blocks = sequences * new SelectiveScanTile(IsAligned: true).Blocks(channels, groups);
        return Of(false, 2 * blocks >= 3L * multiprocessors ? 1 : Wanted(3 * multiprocessors, blocks, length), length);
    }

    /// <summary>At most so many segments of equal length, the last one perhaps shorter.</summary>
    public static SelectiveScanCut Of(bool isNarrow, int segments, int length)
    {
        const int Unit = SelectiveScanTile.SavedSteps;
        var units = Math.Max(1, (length + Unit - 1) / Unit);
        var each = (units + segments - 1) / segments;
        return new SelectiveScanCut(isNarrow, (units + each - 1) / each, each * Unit);
    }

    private static int Wanted(long all, long blocks, int length) =>
        (int)Math.Clamp(all / Math.Max(1, blocks), 1, Math.Max(1, length / FewestSteps));
}
