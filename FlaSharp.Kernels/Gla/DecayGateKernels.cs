using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// The log decays of gated linear attention on a GPU, g = max(logsigmoid(x) / normalizer, minimum) in float32: the launches of
/// Gla/decay_gate_*.cu.
/// </summary>
internal sealed class DecayGateKernels(GpuDevice device)
{
    private const int BlocksPerMultiprocessor = 32;

    private static readonly KernelVariant[] s_forward = ElementwiseKernels.Of("Gla/decay_gate_forward");
    private static readonly KernelVariant[] s_backward = ElementwiseKernels.Of("Gla/decay_gate_backward");

    /// <summary>Elements of each tensor, which are dense.</summary>
    public required long Count { get; init; }

    /// <summary>Of x.</summary>
    public required ElementType Element { get; init; }

    public required float Normalizer { get; init; }

    /// <summary>-inf for none.</summary>
    public required float Minimum { get; init; }

    /// <summary>Every kernel.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) => s_forward.Concat(s_backward);

    /// <param name="x">In <see cref="Element"/>.</param>
    /// <param name="g">float32.</param>
    public void Forward(nint x, nint g) => Launch(s_forward, new ForwardParameters
    {
        X = x,
        G = g,
        Count = Count,
        Normalizer = Normalizer,
        Minimum = Minimum,
        Aligned = ElementwiseKernels.AreAligned(x, g),
    });

    /// <param name="x">In <see cref="Element"/>.</param>
    /// <param name="decayGradient">float32.</param>
    /// <param name="inputGradient">In <see cref="Element"/>.</param>
    public void Backward(nint x, nint decayGradient, nint inputGradient) => Launch(s_backward, new BackwardParameters
    {
        X = x,
        DecayGradient = decayGradient,
        InputGradient = inputGradient,
        Count = Count,
        Normalizer = Normalizer,
        Minimum = Minimum,
        Aligned = ElementwiseKernels.AreAligned(x, decayGradient, inputGradient),
    });

    private void Launch<TParameters>(KernelVariant[] variants, in TParameters parameters)
        where TParameters : unmanaged =>
        ElementwiseKernels.Launch(device, variants, Element, Count, BlocksPerMultiprocessor, parameters);

    /// <summary>DecayGateForward of decay_gate_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public nint X;
        public nint G;
        public long Count;
        public float Normalizer;
        public float Minimum;
        public int Aligned;
    }

    /// <summary>DecayGateBackward of decay_gate_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public nint X;
        public nint DecayGradient;
        public nint InputGradient;
        public long Count;
        public float Normalizer;
        public float Minimum;
        public int Aligned;
    }
}
