using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// The log decays of gated linear attention on a GPU, g = max(logsigmoid(x) / normalizer, minimum) in float32: the launches of
/// Gla/decay_gate_*.cu.
/// </summary>
internal sealed class DecayGateKernels(GpuDevice device)
{
    private const int Threads = 256;
    private const int BlocksPerMultiprocessor = 32;
    private const int Alignment = 16;

    // By element type.
    private static readonly KernelVariant[] s_forward = [.. ElementTypes.All.Select(element => Variant("forward", element))];
    private static readonly KernelVariant[] s_backward = [.. ElementTypes.All.Select(element => Variant("backward", element))];

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
        Aligned = x % Alignment == 0 && g % Alignment == 0 ? 1 : 0,
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
        Aligned = x % Alignment == 0 && decayGradient % Alignment == 0 && inputGradient % Alignment == 0 ? 1 : 0,
    });

    private static KernelVariant Variant(string pass, ElementType element) =>
        new($"Gla/decay_gate_{pass}.cu", $"decay_gate_{pass}",
            [$"ELEMENT={element.Name()}", $"THREADS={Threads}"], Threads, SharedBytes: 0);

    private void Launch<TParameters>(KernelVariant[] variants, in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(device, variants[(int)Element]);
        var threads = (Count * Element.Bytes() + Alignment - 1) / Alignment; // 16 bytes of x for each
        var blocks = Math.Min((threads + Threads - 1) / Threads, (long)device.Info.MultiprocessorCount * BlocksPerMultiprocessor);
        if (blocks > 0)
            kernel.Launch((uint)blocks, 1, 1, LaunchStream.Current, parameters);
    }

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
