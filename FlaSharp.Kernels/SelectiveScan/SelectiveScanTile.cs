using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>How a block of SelectiveScan/*.cu shares its work among threads: the constants of fla/selective_scan.cuh.</summary>
/// <param name="IsAligned">Whether threads read and write <see cref="Vector"/> channels or states at once, or else one.</param>
/// <param name="IsNarrow">Whether more threads share a channel, where there are few channels. Only forward.</param>
/// <param name="IsLong">Whether more steps are in shared memory at once, where it has room. Only forward, and aligned.</param>
internal sealed record SelectiveScanTile(bool IsAligned, bool IsNarrow = false, bool IsLong = false)
{
    /// <summary>Channels per group and states are multiples of it in an aligned call.</summary>
    public const int Vector = 8;

    /// <summary>States of a channel in registers at once.</summary>
    public const int Slice = 16;

    /// <summary>Steps between two states that the forward pass saves for the backward pass.</summary>
    public const int SavedSteps = 32;

    private const int Warps = 4;
    private const int Threads = 32 * Warps;
    private const int PartSteps = 8; // of scan_backward.cu
    private const int Float = sizeof(float);
    private const int BlockBytes = 64; // fla::ScanBlock
    private const int CursorBytes = 13 * 2 * sizeof(long); // of a warp of scan_backward.cu
    private const int FewBlocks = 3; // of scan_backward.cu, on a multiprocessor
    private const int BarrierBytes = 4 * sizeof(long); // of scan_forward.cu

    /// <summary>Channels of a block, neighbours in a group.</summary>
    public int Channels => Threads / Lanes;

    private int Lanes => IsNarrow ? 8 : 4;

    // In shared memory at once.
    private int Steps => SavedSteps * (IsNarrow, IsLong) switch
    {
        (false, false) => 1,
        (false, true) or (true, false) => 2,
        (true, true) => 6, // of a block that has a multiprocessor for itself
    };

    private int SegmentBytes => Float * Steps * (2 * (Channels + Channels / 8) + 2 * Slice);

    // A number for each step and channel.
    private int SumBytes => Float * Steps * (Channels + 32 / Lanes);

    /// <summary>Blocks of scan_backward.cu that a multiprocessor of Hopper has at a time.</summary>
    /// <param name="element">Of u.</param>
    public static int BackwardBlocks(ElementType element) => element == ElementType.BFloat16 ? 4 : 3;

    /// <summary>The type of a block's part of the gradients of B and C.</summary>
    /// <param name="element">Of B and C.</param>
    public static ElementType KeptAs(ElementType element) =>
        element == ElementType.BFloat16 ? ElementType.BFloat16 : ElementType.Float32;

    /// <summary>Blocks of a group's channels.</summary>
    /// <param name="channels">E.</param>
    /// <param name="groups">G.</param>
    public long GroupBlocks(long channels, long groups) => (channels / groups + Channels - 1) / Channels;

    /// <summary>Blocks of a sequence without a cut of time.</summary>
    /// <inheritdoc cref="GroupBlocks"/>
    public long Blocks(long channels, long groups) => groups * GroupBlocks(channels, groups);

    public KernelVariant Forward(ElementType element, bool isGated, bool hasSoftplus, bool hasSlices) =>
        Variant("scan_forward", 2 * (SegmentBytes + SumBytes) + BarrierBytes, element, isGated, hasSoftplus,
            Slices(hasSlices), $"SAVED_STEPS={SavedSteps}") with
        { Threads = 2 * Threads };

    /// <summary>Whether so few blocks of scan_backward.cu have a place at once that each may have more registers.</summary>
    /// <param name="blocks">Of a launch.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static bool AreFew(long blocks, int multiprocessors) => blocks <= (long)FewBlocks * multiprocessors;

    public KernelVariant Backward(ElementType element, bool isGated, bool hasSoftplus, bool hasSlices, bool areFew) =>
        Variant("scan_backward",
            Float * Steps * (9 * Channels + Warps * Slice) // delta, delta u, g, three sums of two warps each; dB and dC
                + 2 * Steps * Channels * KeptAs(element).Bytes() // slopes
                + 2 * Steps * Slice * element.Bytes() // B, C
                + Float * (Steps / PartSteps - 2) * Threads * (Slice / Lanes) // states before parts
                + Warps * CursorBytes + Float * Threads // sums of each thread
                + BlockBytes,
            element, isGated, hasSoftplus, Slices(hasSlices),
            $"BLOCKS={(areFew || !isGated || !IsAligned ? FewBlocks : BackwardBlocks(element))}");

    public KernelVariant SegmentState(ElementType element, bool isGated, bool hasSoftplus, bool isBackward) =>
        Variant("segment_state", SegmentBytes, element, isGated, hasSoftplus, $"BACKWARD={(isBackward ? 1 : 0)}");

    // Most have one slice: its loop is a constant then.
    private static string Slices(bool hasSlices) => $"SINGLE={(hasSlices ? 0 : 1)}";

    private KernelVariant Variant(
        string name, int sharedBytes, ElementType element, bool isGated, bool hasSoftplus, params string[] defines) =>
        new($"SelectiveScan/{name}.cu", $"selective_{(name.StartsWith("scan", StringComparison.Ordinal) ? "" : "scan_")}{name}",
            [
                $"ELEMENT={element.Name()}", $"GATED={(isGated ? 1 : 0)}", $"SOFTPLUS={(hasSoftplus ? 1 : 0)}",
                $"VECTOR={(IsAligned ? Vector : 1)}", $"LANES={Lanes}", $"WARPS={Warps}", $"STEPS={Steps}",
                $"SHARED_BYTES={sharedBytes}", .. defines,
            ],
            Threads, sharedBytes);
}
