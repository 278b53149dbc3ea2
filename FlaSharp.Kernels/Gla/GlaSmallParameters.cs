using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The parameters of Gla/small_*.cu, as these lay them out.</summary>
internal static class GlaSmallParameters
{
    /// <summary>GlaSmallForward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Forward
    {
        public GlaChunkParameters.Shape Shape;
        public TensorView Q;
        public TensorView K;
        public TensorView V;
        public TensorView G;
        public TensorView O;
        public nint Initial;
        public nint Final;
        public nint States;
        public float Scale;
    }

    /// <summary>GlaSmallCluster, whose maps lie at multiples of 64 bytes.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 768)]
    public struct Cluster
    {
        public TensorMap Q;
        public TensorMap K;
        public TensorMap V;
        public TensorMap G;
        public Forward Call;
    }

    /// <summary>GlaSmallBackward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Backward
    {
        public GlaChunkParameters.Shape Shape;
        public TensorView Q;
        public TensorView K;
        public TensorView V;
        public TensorView G;
        public TensorView GradOutput;
        public TensorView GradQ;
        public TensorView GradK;
        public TensorView GradV;
        public TensorView GradG;
        public nint States;
        public nint FinalGradient;
        public nint InitialGradient;
        public float Scale;
    }
}
