using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>How a block of SelectiveScan/*.cu shares its work among threads: the constants of fla/selective_scan.cuh.</summary>
/// <param name="IsAligned">Whether threads read and write <see cref="Vector"/> channels or states at once, or else one.</param>
internal sealed record SelectiveScanTile(bool IsAligned)
{
    /// <summary>Channels per group and states are multiples of it in an aligned call.</summary>
    public const int Vector = 8;

    /// <summary>States of a channel in registers at once.</summary>
    public const int Slice = 16;

    /// <summary>Steps in shared memory at once; and between two states that the forward pass saves for the backward pass.</summary>
    public const int Steps = 32;

    /// <summary>Channels of a block.</summary>
    public const int Channels = Threads / Lanes;

    private const int Lanes = 4;
    private const int Warps = 4;
    private const int Threads = 32 * Warps;
    private const int PartSteps = 8; // of scan_backward.cu
    private const int SumRow = Channels + 8;
    private const int Float = sizeof(float);

    /// <summary>A kernel that is launched with <see cref="Channels"/> of them for each block.</summary>
    public KernelVariant Forward(ElementType element, bool isGated, bool hasSoftplus) =>
        Variant("scan_forward", SegmentBytes + Float * Steps * SumRow, element, isGated, hasSoftplus, $"SAVED_STEPS={Steps}");

    /// <inheritdoc cref="Forward"/>
    public KernelVariant Backward(ElementType element, bool isGated, bool hasSoftplus) =>
        Variant("scan_backward",
            Float * Steps * (8 * Channels + 2 * Slice + 3 * SumRow) // step, slope, totals; matrices; y, du, ddelta
                + Float * (Steps / PartSteps * Threads * (Slice / Lanes) + Warps * Steps * 2 * Slice), // starts, sums
            element, isGated, hasSoftplus);

    /// <inheritdoc cref="Forward"/>
    public KernelVariant SegmentState(ElementType element, bool isGated, bool hasSoftplus, bool isBackward) =>
        Variant("segment_state", SegmentBytes, element, isGated, hasSoftplus, $"BACKWARD={(isBackward ? 1 : 0)}");

    private static int SegmentBytes => Float * Steps * (2 * Channels + 2 * Slice);

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
