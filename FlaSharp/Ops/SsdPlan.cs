using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>How a call of <see cref="FlaOps.Ssd"/> runs.</summary>
/// <param name="Path">"cuda", "cpu-simd" or "torch".</param>
/// <param name="Reason">Why.</param>
/// <param name="Tile">Of the CUDA kernels over chunks; null for those of the recurrence, and on other paths.</param>
/// <param name="Missing">Why the CUDA kernel that should compute it cannot; null if it can, or none is meant to.</param>
internal sealed record SsdPlan(string Path, string Reason, SsdTile? Tile = null, string? Missing = null)
{
    private const int ShortSequence = 16; // up to it the chunked form has nothing to gain over a handful of steps

    /// <param name="x">[B, T, H, P], checked.</param>
    /// <param name="stateSize">N.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="gradients">Whether backward may follow.</param>
    public static SsdPlan Of(Tensor x, long stateSize, Sequences sequences, bool gradients)
    {
        if (x.device_type == DeviceType.CPU)
            return new(FlaOps.CpuPath, "A kernel for the CPU.");
        if (x.device_type != DeviceType.CUDA)
            return new(FlaOps.TorchPath, "There is no kernel for it on such a device.");
        if (x.dtype.Element() is not { } element)
            return new(FlaOps.TorchPath, "There is no kernel for such a dtype.");
        var index = Math.Max(0, x.device_index);
        if (!CudaRuntime.IsAvailable(index, out var gpu))
            return new(FlaOps.TorchPath, $"Its kernel cannot run: {gpu}", Missing: gpu);

        var length = sequences.MaxLength;
        if (!gradients && length <= ShortSequence && stateSize <= SsdRecurrenceKernel.MaxStateSize)
            return new(FlaOps.CudaPath, $"The longest sequence has {length} tokens: step by step. {gpu}");
        var tile = SsdTile.Choose(
            checked((int)x.Size(3)), checked((int)stateSize), element, GpuDevice.Get(index).Target!, out var reason);
        if (tile is not null)
            return new(FlaOps.CudaPath, $"Over chunks. {gpu}", tile);
        // In float32 the chunks are libtorch's by design: it keeps all digits, tensor cores do not.
        return new(FlaOps.TorchPath, reason, Missing: element == ElementType.Float32 ? null : reason);
    }
}
