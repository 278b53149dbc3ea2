using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>How a call is cut into blocks that keep a GPU busy.</summary>
/// <param name="IsNarrow"><see cref="SelectiveScanTile.IsNarrow"/>.</param>
/// <param name="Segments">Parts of each sequence that are worked on at the same time.</param>
/// <param name="Steps">Steps in each but the last, a multiple of <see cref="SelectiveScanTile.SavedSteps"/> in each part.</param>
/// <param name="Parts">Of each segment, for the states that segments start from: the blocks that make them do little.</param>
internal readonly record struct SelectiveScanCut(bool IsNarrow, int Segments, int Steps, int Parts = 1)
{
    private const int FewestSteps = 256;
    private const int PartSteps = 128;
    private const int MostParts = 4;

    /// <summary>States that segment_state.cu makes for each sequence.</summary>
    public int States => Segments * Parts;

    /// <summary>
    /// For the forward pass. With 1 or 2 wide blocks to a multiprocessor a step took 34 or 58 ns on an H200; with as many narrow
    /// ones, which do half as much, 23 or 38. Segments add two thirds to the work, and fill the GPU: they pay where wide blocks
    /// would leave a third of it idle, unless nearly every multiprocessor would have just one narrow block.
    /// </summary>
    /// <param name="channels">E.</param>
    /// <param name="groups">G.</param>
    /// <param name="sequences">S.</param>
    /// <param name="length">Steps of the longest sequence.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static SelectiveScanCut Forward(long channels, long groups, long sequences, int length, int multiprocessors)
    {
        var (wide, narrow) = (Blocks(false), Blocks(true));
        if (10 * wide >= 7L * multiprocessors)
            return Of(false, 1, length);
        if (16 * narrow >= 15L * multiprocessors && narrow <= multiprocessors)
            return Of(true, 1, length);
        // Wide blocks do more at a time, if enough of them come of the cut.
        var isNarrow = wide * Wanted(wide) < 2L * multiprocessors;
        return Of(isNarrow, Wanted(isNarrow ? narrow : wide), length);

        long Blocks(bool isNarrow) => sequences * new SelectiveScanTile(IsAligned: true, isNarrow).Blocks(channels, groups);
        int Wanted(long blocks) => SelectiveScanCut.Wanted(blocks, length, multiprocessors);
    }

    /// <summary>
    /// For the backward pass: as many segments as blocks fit beside each other. Their states add a sixth to the work, but for the
    /// first segment; half as many blocks take a fifth more time.
    /// </summary>
    /// <inheritdoc cref="Forward"/>
    public static SelectiveScanCut Backward(
        long channels, long groups, long sequences, int length, int multiprocessors, ElementType element)
    {
        var blocks = sequences * new SelectiveScanTile(IsAligned: true).Blocks(channels, groups);
        var segments = AtMost(SelectiveScanTile.BackwardBlocks(element) * (long)multiprocessors, blocks, length);
        return Of(false, segments, length, segments == 1 ? 1 : Math.Clamp(length / segments / PartSteps, 1, MostParts));
    }

    /// <summary>At most so many segments of equal length, the last one perhaps shorter.</summary>
    public static SelectiveScanCut Of(bool isNarrow, int segments, int length, int parts = 1)
    {
        var unit = SelectiveScanTile.SavedSteps * parts;
        var units = Math.Max(1, (length + unit - 1) / unit);
        var each = (units + segments - 1) / segments;
        var count = (units + each - 1) / each;
        return new SelectiveScanCut(isNarrow, count, each * unit, count == 1 ? 1 : parts);
    }

    // For six blocks to a multiprocessor, more than it has at a time: those of a single wave would all begin and end together.
    private static int Wanted(long blocks, int length, int multiprocessors) => AtMost(6L * multiprocessors, blocks, length);

    // Segments that make at most so many of the blocks, and are not too short.
    private static int AtMost(long wanted, long blocks, int length) =>
        (int)Math.Clamp(wanted / Math.Max(1, blocks), 1, Math.Max(1, length / FewestSteps));
}
