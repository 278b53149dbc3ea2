using System.Runtime.InteropServices;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Ssd;

/// <summary>The parameters of Ssd/*.cu, as these lay them out.</summary>
internal static class SsdParameters
{
    /// <summary>fla::SsdStepRule.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct StepRule
    {
        public nint Bias;
        public nint Rates;
        public float Low;
        public float High;
        public int Softplus;
        public int IsLog;
    }

    /// <summary>SsdSteps.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Steps
    {
        public SequenceLayout Sequences;
        public TensorView Dt;
        public StepRule Rule;
        public nint StepSizes;
        public nint Sums;
        public int Heads;
        public int Chunks;
    }

    /// <summary>SsdChunkScan.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Scan
    {
        public GlaChunkParameters.Shape Shape;
        public TensorView Query;
        public TensorView Key;
        public TensorView Input;
        public TensorView Output;
        public TensorView Gate;
        public nint StepSizes;
        public nint Sums;
        public nint Direct;
        public nint Initial;
        public nint Local;
        public nint Decay;
        public nint Final;
        public nint States;
        public int DirectHead;
        public int DirectChannel;
    }

    /// <summary>SsdChunkBackward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Backward
    {
        public GlaChunkParameters.Shape Shape;
        public TensorView B;
        public TensorView C;
        public TensorView X;
        public TensorView GradOutput;
        public TensorView GradB;
        public TensorView GradC;
        public nint StepSizes;
        public nint Sums;
        public nint States;
        public nint StateGrads;
        public nint Tokens;
        public nint Products;
        public long Slots;
        public int StateValues;
        public int StateKeys;
        public int Heads;
        public int Group;
        public int Set;
        public int Sets;
    }

    /// <summary>SsdStepsBackward.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct StepsBackward
    {
        public SequenceLayout Sequences;
        public TensorView Dt;
        public TensorView GradDt;
        public StepRule Rule;
        public nint Tokens;
        public nint Products;
        public nint Totals;
        public long Slots;
        public int Slices;
        public int Heads;
        public int Spans;
    }

    /// <summary>SsdRecurrence.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Recurrence
    {
        public SequenceLayout Sequences;
        public TensorView X;
        public TensorView Dt;
        public TensorView B;
        public TensorView C;
        public TensorView Z;
        public TensorView Y;
        public StepRule Rule;
        public nint Direct;
        public nint Initial;
        public nint Final;
        public int Heads;
        public int Group;
        public int HeadSize;
        public int StateSize;
        public int DirectHead;
        public int DirectChannel;
    }
}
