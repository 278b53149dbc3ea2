using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using TorchSharp;

namespace FlaSharp.Ops;

/// <summary>How a call of <see cref="FlaOps.Gla"/> runs.</summary>
/// <param name="Choice">The mode, what computes it, and why.</param>
/// <param name="Missing">Why the CUDA kernel that should compute it cannot; null if it can, or none is meant to.</param>
/// <param name="Small">The tile of the kernels for small heads, if these compute it.</param>
internal sealed record GlaPlan(ModeChoice Choice, string? Missing = null, GlaSmallTile? Small = null)
{
    private const int ShortSequence = 16; // up to it the chunked form has nothing to gain over a handful of steps

    // The same in float32 on a GPU, whose chunks take three times the products: at 64 tokens they are as fast or faster (H100).
    private const int ShortFloat32Sequence = 32;

    /// <param name="problem">The call.</param>
    /// <param name="mode">What was asked for.</param>
    /// <param name="explain">Whether the reason is wanted where a kernel runs: a call takes less time than its text.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such mode.</exception>
    public static GlaPlan Of(in GlaProblem problem, LinearAttentionMode mode, bool explain = false)
    {
        if (!Enum.IsDefined(mode))
            throw new ArgumentOutOfRangeException(nameof(mode), mode, "No such mode.");
        return problem.Device switch
        {
            DeviceType.CPU => OnCpu(mode),
            DeviceType.CUDA => OnGpu(problem, mode, explain),
            _ => Elsewhere(problem, mode, "There is no kernel for it on such a device."),
        };
    }

    private static GlaPlan OnCpu(LinearAttentionMode mode) => mode switch
    {
        LinearAttentionMode.Auto => new(new ModeChoice(LinearAttentionMode.FusedRecurrent, FlaOps.CpuPath,
            "On a CPU the recurrence keeps its state in the caches and needs the fewest operations.")),
        LinearAttentionMode.FusedRecurrent => new(new ModeChoice(mode, FlaOps.CpuPath, "Asked for.")),
        _ => new(new ModeChoice(mode, FlaOps.TorchPath, "Asked for. On a CPU only the recurrence has a kernel.")),
    };

    private static GlaPlan OnGpu(in GlaProblem problem, LinearAttentionMode mode, bool explain)
    {
        if (problem.Element is not { } element || problem.Gate is not { } gate)
            return Elsewhere(problem, mode, "There is no kernel for such a dtype.");
        if (!CudaRuntime.IsAvailable(problem.DeviceIndex, out var gpu))
            return Elsewhere(problem, mode, $"Its kernel cannot run: {gpu}") with { Missing = gpu };

        var device = GpuDevice.Get(problem.DeviceIndex);
        var parts = GlaParts.Of(problem);
        var tile = GlaChunkTile.Choose(
            parts.Keys, parts.Values, element, gate, problem.Gradients, device.Target!, out var noChunks);
        var small = GlaSmallTile.Choose(problem.KeySize, problem.ValueSize, element, gate,
            (long)problem.Sequences.Count * problem.Heads, problem.Sequences.MaxLength, device.Info.MultiprocessorCount);
        var noRecurrence = Math.Max(problem.KeySize, problem.ValueSize) <= GlaRecurrentTile.MaxSize
            ? null
            : $"K = {problem.KeySize} and V = {problem.ValueSize}: the recurrence takes up to {GlaRecurrentTile.MaxSize}.";
        var (taken, reason) = mode == LinearAttentionMode.Auto
            ? Auto(problem, parts, device, tile, small, noChunks, explain)
            : (mode, "Asked for.");
        var missing = taken == LinearAttentionMode.FusedRecurrent ? noRecurrence : tile is null ? noChunks : null;
        if (missing is not null)
            return new(new ModeChoice(taken, FlaOps.TorchPath, $"{reason} {missing}"), missing);
        if (taken == LinearAttentionMode.FusedRecurrent)
            small = null;
        if (!explain)
            return new(new ModeChoice(taken, FlaOps.CudaPath, ""), Small: small);
        var manner = taken == LinearAttentionMode.FusedRecurrent ? ""
            : small is not null ? $" The {small.Warps} warps of a block share a head's tokens, without chunks."
            : OverChunks(problem, parts, device, tile!);
        return new(new ModeChoice(taken, FlaOps.CudaPath, $"{reason}{manner} {gpu}"), Small: small);
    }

    /// <summary>The one place that says which mode is the fastest where.</summary>
    private static (LinearAttentionMode, string) Auto(
        in GlaProblem problem, GlaParts parts, GpuDevice device, GlaChunkTile? tile, GlaSmallTile? small, string noChunks,
        bool explain)
    {
        var length = problem.Sequences.MaxLength;
        if (length <= (problem.Element == ElementType.Float32 ? ShortFloat32Sequence : ShortSequence))
            return (LinearAttentionMode.FusedRecurrent, explain ? ShortReason(length) : "");
        if (small is not null)
            return (LinearAttentionMode.FusedChunk, explain ? $"K and V are at most {GlaSmallTile.MaxSize}: a single pass." : "");
        if (tile is null)
            return (LinearAttentionMode.FusedRecurrent, noChunks);
        var blocks = tile.BlockCount((long)problem.Sequences.Count * problem.Heads, parts.Values);
        var multiprocessors = device.Info.MultiprocessorCount;
        var isBusy = GlaSegments.IsBusy(blocks, multiprocessors);
        var reason = explain
            ? $"Sequences, heads and values make {blocks} blocks for {multiprocessors} multiprocessors: "
                + (isBusy ? "enough for a single pass." : "too few, so time is cut as well.")
            : "";
        return (isBusy ? LinearAttentionMode.FusedChunk : LinearAttentionMode.Chunk, reason);
    }

    /// <summary>With TorchSharp's operations.</summary>
    private static GlaPlan Elsewhere(in GlaProblem problem, LinearAttentionMode mode, string path)
    {
        var length = problem.Sequences.MaxLength;
        var (taken, reason) = mode != LinearAttentionMode.Auto ? (mode, "Asked for.")
            : length <= ShortSequence ? (LinearAttentionMode.FusedRecurrent, ShortReason(length))
            : (LinearAttentionMode.Chunk, $"The longest sequence has {length} tokens: products over chunks keep a GPU busy.");
        return new(new ModeChoice(taken, FlaOps.TorchPath, $"{reason} {path}"));
    }

    /// <summary>How the kernels over chunks go about it.</summary>
    private static string OverChunks(in GlaProblem problem, GlaParts parts, GpuDevice device, GlaChunkTile tile)
    {
        var cut = parts.AreAll(problem)
            ? ""
            : $" K = {problem.KeySize} and V = {problem.ValueSize} are taken in parts of up to {parts.Keys} and {parts.Values}.";
        var lines = (long)problem.Sequences.Count * problem.Heads;
        var taken = tile.For(lines, parts.Values, device.Info.MultiprocessorCount);
        return cut + (taken.UsesHopper || taken.UsesClusters(parts.Values)
            ? " Forward's products are Hopper's (wgmma)."
            : " Forward's products are the portable ones (mma.sync).");
    }

    private static string ShortReason(int length) =>
        $"The longest sequence has {length} tokens: a few steps cost less than a chunk's matrices.";
}
