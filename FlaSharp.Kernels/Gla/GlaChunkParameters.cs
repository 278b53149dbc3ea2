using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The parameters of Gla/chunk_*.cu and Gla/segment_scan.cu, as these lay them out.</summary>
internal static class GlaChunkParameters
{
    /// <summary>fla::GlaShape.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Shape
    {
        public SequenceLayout Sequences;
        public int Heads;
        public int Group;
        public int KeySize;
        public int ValueSize;
        public int Segments;
        public int SegmentChunks;
    }

    /// <summary>GlaChunkForward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Forward
    {
        public Shape Shape;
        public TensorView Q;
        public TensorView K;
        public TensorView V;
        public TensorView G;
        public TensorView O;
        public nint Initial;
        public nint Final;
        public nint States;
        public nint Plain;
        public float Scale;
    }

    /// <summary>GlaChunkState.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct State
    {
        public Shape Shape;
        public TensorView X;
        public TensorView Y;
        public TensorView G;
        public nint Initial;
        public nint Local;
        public nint Decay;
        public nint Final;
        public nint States;
        public nint Plain;
        public float Scale;
        public int XGroup;
        public int YGroup;
    }

    /// <summary>GlaSegmentScan.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Scan
    {
        public nint States;
        public nint Decay;
        public nint Initial;
        public long Size;
        public int Segments;
        public int KeySize;
        public int ValueSize;
        public int Backward;
    }

    /// <summary>GlaChunkBackward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Backward
    {
        public Shape Shape;
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
        public nint StateGrads;
        public nint PlainStates;
        public nint PlainGrads;
        public int StateValues;
        public float Scale;
        public int Blocks;
    }
}
