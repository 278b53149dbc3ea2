using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Activation;

/// <summary>y = silu(gate) up on a GPU, over dense tensors: the launches of Activation/swiglu_*.cu.</summary>
internal sealed class SwiGluKernels(GpuDevice device)
{
    private const int BlocksPerMultiprocessor = 64;

    private static readonly KernelVariant[] s_forward = ElementwiseKernels.Of("Activation/swiglu_forward");
    private static readonly KernelVariant[] s_backward = ElementwiseKernels.Of("Activation/swiglu_backward");

    /// <summary>Elements of each tensor.</summary>
    public required long Count { get; init; }

    public required ElementType Element { get; init; }

    /// <summary>Every kernel.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) => s_forward.Concat(s_backward);

    public void Forward(nint gate, nint up, nint y) => Launch(s_forward, new ForwardParameters
    {
        Gate = gate,
        Up = up,
        Y = y,
        Count = Count,
        Aligned = ElementwiseKernels.AreAligned(gate, up, y),
    });

    public void Backward(nint gate, nint up, nint outputGradient, nint gateGradient, nint upGradient) =>
        Launch(s_backward, new BackwardParameters
        {
            Gate = gate,
            Up = up,
            OutputGradient = outputGradient,
            GateGradient = gateGradient,
            UpGradient = upGradient,
            Count = Count,
            Aligned = ElementwiseKernels.AreAligned(gate, up, outputGradient, gateGradient, upGradient),
        });

    private void Launch<TParameters>(KernelVariant[] variants, in TParameters parameters)
        where TParameters : unmanaged =>
        ElementwiseKernels.Launch(device, variants, Element, Count, BlocksPerMultiprocessor, parameters);

    /// <summary>SwiGluForward of swiglu_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public nint Gate;
        public nint Up;
        public nint Y;
        public long Count;
        public int Aligned;
    }

    /// <summary>SwiGluBackward of swiglu_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public nint Gate;
        public nint Up;
        public nint OutputGradient;
        public nint GateGradient;
        public nint UpGradient;
        public long Count;
        public int Aligned;
    }
}
