using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>The parameters of the backward kernels in Attention/, as these lay them out.</summary>
internal static class AttentionBackwardParameters
{
    /// <summary>AttentionDelta.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Delta
    {
        public AttentionParameters.Shape Shape;
        public TensorView Output;
        public TensorView GradOutput;
        public nint LogSumExp;
        public nint Logs;
        public nint Deltas;
        public nint Sinks;
        public nint Turns;
        public int Time;
        public int TurnCount;
        public int Blocks;
    }

    /// <summary>AttentionSinks.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Sinks
    {
        public AttentionParameters.Shape Shape;
        public nint Blocks;
        public nint Gradient;
    }

    /// <summary>AttentionQueries.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Queries
    {
        public AttentionParameters.Shape Shape;
        public TensorView Gradient;
        public nint Sums;
        public int Blocks;
    }

    /// <summary>fla::AttentionBackward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Backward
    {
        public AttentionParameters.Shape Shape;
        public TensorView Q;
        public TensorView K;
        public TensorView V;
        public TensorView GradOutput;
        public TensorView GradK;
        public TensorView GradV;
        public nint Logs;
        public nint Deltas;
        public nint Sums;
        public nint Turns;
        public int Lines;
        public int Together;
        public int KeyTiles;
        public int Descending;
    }

    /// <summary>AttentionHopperBackward, whose maps lie at multiples of 64 bytes.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 896)]
    public struct Hopper
    {
        public TensorMap Q;
        public TensorMap K;
        public TensorMap V;
        public TensorMap GradOutput;
        public Backward Call;
    }
}
