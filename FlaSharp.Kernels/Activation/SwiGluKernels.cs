using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Activation;

/// <summary>y = silu(gate) up on a GPU, over dense tensors: the launches of Activation/swiglu_*.cu.</summary>
internal sealed class SwiGluKernels(GpuDevice device)
{
    private const int Threads = 256;
    private const int BlocksPerMultiprocessor = 64;
    private const int Alignment = 16;

    // By element type.
    private static readonly KernelVariant[] s_forward = [.. ElementTypes.All.Select(element => Variant("forward", element))];
    private static readonly KernelVariant[] s_backward = [.. ElementTypes.All.Select(element => Variant("backward", element))];

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
        Aligned = (gate | up | y) % Alignment == 0 ? 1 : 0,
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
            Aligned = (gate | up | outputGradient | gateGradient | upGradient) % Alignment == 0 ? 1 : 0,
        });

    private static KernelVariant Variant(string pass, ElementType element) =>
        new($"Activation/swiglu_{pass}.cu", $"swiglu_{pass}",
            [$"ELEMENT={element.Name()}", $"THREADS={Threads}"], Threads, SharedBytes: 0);

    private void Launch<TParameters>(KernelVariant[] variants, in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(device, variants[(int)Element]);
        var threads = (Count * Element.Bytes() + Alignment - 1) / Alignment; // 16 bytes of a tensor for each
        var blocks = Math.Min((threads + Threads - 1) / Threads, (long)device.Info.MultiprocessorCount * BlocksPerMultiprocessor);
        if (blocks > 0)
            kernel.Launch((uint)blocks, 1, 1, LaunchStream.Current, parameters);
    }

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
