using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>The parameters of Attention/*.cu, as these lay them out.</summary>
internal static class AttentionParameters
{
    /// <summary>fla::AttentionShape.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Shape
    {
        public SequenceLayout Queries;
        public SequenceLayout Keys;
        public int Heads;
        public int Group;
        public int KeySize;
        public int ValueSize;
        public int IsCausal;
        public int Window;
        public float Scale;
        public float Softcap;
        public uint Dropout;
        public float Kept;
        public ulong Seed;
        public ulong Offset;
        public nint Sinks;
        public nint Slopes;

        /// <summary>The call's.</summary>
        public static Shape Of(AttentionProblem problem) => new()
        {
            Queries = problem.Queries,
            Keys = problem.Keys,
            Heads = problem.Heads,
            Group = problem.Heads / problem.KvHeads,
            KeySize = problem.KeySize,
            ValueSize = problem.ValueSize,
            IsCausal = problem.IsCausal ? 1 : 0,
            Window = problem.Window,
            Scale = problem.Scale,
            Softcap = problem.Softcap,
            Dropout = (uint)Math.Min(uint.MaxValue, Math.Round(problem.Dropout * Math.ScaleB(1.0, 32))),
            Kept = 1 / (1 - problem.Dropout),
            Seed = problem.Seed,
            Offset = problem.Offset,
            Sinks = problem.Sinks,
            Slopes = problem.AlibiSlopes,
        };
    }

    /// <summary>fla::AttentionCall.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct Call
    {
        public Shape Shape;
        public TensorView O;
        public nint LogSumExp;
        public int Time;
        public int Blocks;
        public int Section;
        public int Tiles;
        public int TurnsBack;
    }

    /// <summary>AttentionForward of portable_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    public struct PortableForward
    {
        public TensorView Q;
        public TensorView K;
        public TensorView V;
        public Call Call;
    }

    /// <summary>AttentionForward of hopper_forward.cu, whose maps lie at multiples of 64 bytes.</summary>
    [StructLayout(LayoutKind.Sequential, Size = 576)]
    public struct HopperForward
    {
        public TensorMap Q;
        public TensorMap K;
        public TensorMap V;
        public Call Call;
    }
}
