using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Rotary;

/// <summary>The rotary embedding on a GPU: the launch of Rotary/rotary.cu.</summary>
internal sealed class RotaryKernels(GpuDevice device)
{
    private const int Threads = 256;
    private const int Table = 2048; // pairs of a block's tokens
    private const int UnitsOfThread = 4; // pairs of vectors, so that its angles are worth the wait
    private const int BlocksPerMultiprocessor = 8;

    private static readonly ConcurrentDictionary<RotaryTile, KernelVariant> s_variants = new();

    /// <summary>B * T.</summary>
    public required int Tokens { get; init; }

    /// <summary>T.</summary>
    public required int Time { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>K.</summary>
    public required int Size { get; init; }

    public required ElementType Element { get; init; }

    /// <summary>Whether neighbours form the pairs.</summary>
    public required bool IsInterleaved { get; init; }

    public required RotaryTurns Turns { get; init; }

    /// <summary>All kernels.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) => RotaryTile.All.Select(Variant);

    /// <param name="x">[B, T, H, K].</param>
    /// <param name="positions">Of its tokens.</param>
    /// <param name="y">[B, T, H, K]; it may be x.</param>
    public void Turn(TensorView x, RotaryPositions positions, TensorView y)
    {
        var multiples = (uint)(Turns.Pairs | Size) | x.Multiples(Element) | y.Multiples(Element);
        var tile = RotaryTile.Of(Element, IsInterleaved, multiples);
        // As many tokens as give a block's threads enough to do, but blocks for the whole GPU first.
        var units = Math.Max(1, (long)Heads * Size / (2 * tile.Vector));
        var perBlock = Math.Clamp(Threads * UnitsOfThread / units, 1, Table / Turns.Pairs);
        var spread = Tokens / ((long)device.Info.MultiprocessorCount * BlocksPerMultiprocessor);
        var block = (int)Math.Clamp(spread, 1, perBlock);
        var kernel = KernelLibrary.Get(device, s_variants.GetOrAdd(tile, Variant));
        kernel.Launch(checked((uint)((Tokens + block - 1) / block)), 1, 1, LaunchStream.Current, new Parameters
        {
            X = x,
            Y = y,
            Positions = positions.Data,
            BatchStep = positions.BatchStep,
            TimeStep = positions.TimeStep,
            Offset = positions.Offset,
            IsLong = positions.IsLong ? 1 : 0,
            Tokens = Tokens,
            Time = Time,
            Heads = Heads,
            Size = Size,
            Block = block,
            Turns = Turns,
        });
    }

    private static KernelVariant Variant(RotaryTile tile) =>
        new("Rotary/rotary.cu", "rotary", tile.Defines, Threads, SharedBytes: 0);

    /// <summary>RotaryTurn of rotary.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public TensorView X;
        public TensorView Y;
        public nint Positions;
        public long BatchStep;
        public long TimeStep;
        public long Offset;
        public int IsLong;
        public int Tokens;
        public int Time;
        public int Heads;
        public int Size;
        public int Block;
        public RotaryTurns Turns;
    }
}
