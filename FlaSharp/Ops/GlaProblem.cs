using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>What the choice of a kernel for a call of <see cref="FlaOps.Gla"/> depends on.</summary>
/// <param name="Device">The type of the device.</param>
/// <param name="DeviceIndex">Which of its type.</param>
/// <param name="Sequences">The layout of the tokens.</param>
/// <param name="Heads">H.</param>
/// <param name="KeySize">K.</param>
/// <param name="ValueSize">V.</param>
/// <param name="Element">The dtype of q; null if no kernel has it.</param>
/// <param name="Gate">The dtype of g; null if no kernel has it.</param>
/// <param name="Gradients">Whether backward may follow.</param>
internal readonly record struct GlaProblem(DeviceType Device, int DeviceIndex, Sequences Sequences, int Heads, int KeySize,
    int ValueSize, ElementType? Element, ElementType? Gate, bool Gradients)
{
    /// <summary>Of a call that has been checked.</summary>
    public static GlaProblem Of(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initialState, Sequences sequences)
    {
        var gradients = is_grad_enabled()
            && (q.requires_grad || k.requires_grad || v.requires_grad || g.requires_grad
                || initialState is { requires_grad: true });
        return Of(q, sequences) with
        {
            ValueSize = checked((int)v.Size(3)),
            Gate = g.dtype.Element(),
            Gradients = gradients,
        };
    }

    /// <summary>Of queries alone: as if values had their size, and all else their dtype and need of a gradient.</summary>
    public static GlaProblem Of(Tensor q, Sequences sequences)
    {
        var (size, element) = (checked((int)q.Size(3)), q.dtype.Element());
        return new GlaProblem(q.device_type, Math.Max(0, q.device_index), sequences, checked((int)q.Size(2)), size, size,
            element, element, is_grad_enabled() && q.requires_grad);
    }
}
