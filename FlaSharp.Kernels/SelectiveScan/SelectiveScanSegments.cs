namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>The cut of each sequence into parts that blocks of a GPU work on at the same time.</summary>
/// <param name="Count">Parts of a sequence.</param>
/// <param name="Steps">Steps in each but the last, a multiple of <see cref="SelectiveScanTile.Steps"/>.</param>
internal readonly record struct SelectiveScanSegments(int Count, int Steps)
{
    private const int FewestSteps = 256;

    /// <summary>
    /// For the forward pass, whose work a cut increases by half: where a third of the multiprocessors would be idle.
    /// </summary>
    /// <param name="blocks">Blocks without a cut.</param>
    /// <param name="length">Steps of the longest sequence.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static SelectiveScanSegments Forward(long blocks, int length, int multiprocessors) =>
        For(blocks, length, busyEnough: 2L * multiprocessors / 3, wanted: 2L * multiprocessors);

    /// <summary>For the backward pass, whose work it increases by a sixth: where multiprocessors have a single block.</summary>
    /// <inheritdoc cref="Forward"/>
    public static SelectiveScanSegments Backward(long blocks, int length, int multiprocessors) =>
        For(blocks, length, busyEnough: 3L * multiprocessors / 2, wanted: 3L * multiprocessors);

    /// <summary>At most <paramref name="count"/> segments of equal length, the last one perhaps shorter.</summary>
    public static SelectiveScanSegments Of(int count, int length)
    {
        const int Tile = SelectiveScanTile.Steps;
        var tiles = Math.Max(1, (length + Tile - 1) / Tile);
        var each = (tiles + count - 1) / count;
        return new SelectiveScanSegments((tiles + each - 1) / each, each * Tile);
    }

    private static SelectiveScanSegments For(long blocks, int length, long busyEnough, long wanted)
    {
        var count = blocks == 0 || blocks >= busyEnough ? 1 : wanted / blocks;
        return Of((int)Math.Clamp(count, 1, Math.Max(1, length / FewestSteps)), length);
    }
}
