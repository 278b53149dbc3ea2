using FlaSharp.Interop;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>How a call of <see cref="FlaOps.Attention"/> runs.</summary>
/// <param name="Path">What computes it.</param>
/// <param name="Reason">Why.</param>
/// <param name="Missing">Why the CUDA kernels that should compute it cannot; null if they can, or are not meant to.</param>
internal sealed record AttentionPlan(AttentionPath Path, string Reason, string? Missing = null)
{
    public string Name => Path == AttentionPath.Kernels ? FlaOps.CudaPath : FlaOps.TorchPath;

    /// <param name="q">[B, Tq, H, K], checked.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="options">Of the call.</param>
    /// <param name="gradients">Whether backward may follow.</param>
    /// <param name="backend">What was asked for.</param>
    /// <exception cref="ArgumentOutOfRangeException">There is no such backend.</exception>
    /// <exception cref="NotSupportedException">The backend that was asked for does not know the call.</exception>
    public static AttentionPlan Of(Tensor q, long valueSize, AttentionSequences sequences, AttentionOptions options,
        bool gradients, AttentionBackend backend)
    {
        switch (backend)
        {
            case AttentionBackend.Auto:
                return Auto(q, valueSize, sequences, options, gradients);
            case AttentionBackend.FlaSharp:
                return Unfit(q, valueSize, out var gpu) is { } unfit
                    ? throw Refusal(backend, unfit)
                    : new(AttentionPath.Kernels, $"Asked for. {gpu}");
            case AttentionBackend.Torch:
                return LibtorchAttention.Unfit(sequences, options) is { } unknown
                    ? throw Refusal(backend, unknown)
                    : new(AttentionPath.Libtorch, "Asked for: libtorch's kernel.");
            default:
                throw new ArgumentOutOfRangeException(nameof(backend), backend, "No such backend.");
        }
    }

    private static AttentionPlan Auto(
        Tensor q, long valueSize, AttentionSequences sequences, AttentionOptions options, bool gradients)
    {
        var unfit = Unfit(q, valueSize, out var gpu);
        if (unfit is null)
            return LibtorchLead.Of(q, sequences, gradients) is { } lead && LibtorchAttention.Unfit(sequences, options) is null
                ? new(AttentionPath.Libtorch, lead)
                : new(AttentionPath.Kernels, gpu);

        // In float32 attention is libtorch's by design: it keeps all digits, tensor cores do not.
        var missing = q.device_type == DeviceType.CUDA && q.dtype != ScalarType.Float32 ? unfit : null;
        return LibtorchAttention.Unfit(sequences, options) is { } unknown
            ? new(AttentionPath.Blocks, $"{unfit} {unknown} So block by block, with TorchSharp's operations.", missing)
            : new(AttentionPath.Libtorch, $"{unfit} So libtorch's kernel.", missing);
    }

    /// <summary>Why the CUDA kernels do not take the call; null if they do.</summary>
    /// <param name="gpu">What for and with what they are compiled then.</param>
    private static string? Unfit(Tensor q, long valueSize, out string gpu)
    {
        gpu = "";
        if (q.device_type != DeviceType.CUDA)
            return "There is no kernel for it on such a device.";
        if (q.dtype == ScalarType.Float32)
            return "The kernels take bfloat16 and float16.";
        var index = Math.Max(0, q.device_index);
        if (!CudaRuntime.IsAvailable(index, out gpu))
            return $"Its kernel cannot run: {gpu}";
        return AttentionForwardKernels.Unfit(checked((int)q.Size(3)), checked((int)valueSize), q.dtype.Element()!.Value,
            GpuDevice.Get(index).Target!);
    }

    private static NotSupportedException Refusal(AttentionBackend backend, string reason) => new(
        $"AttentionBackend.{backend} does not take this call: {reason} Use AttentionBackend.{AttentionBackend.Auto}.");
}
