using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Rotary;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>
/// Appends tokens to a cache [B, capacity, Hkv, *] behind those of their rows, and turns queries and keys by their positions: the
/// launch of Attention/append.cu. Row b's token i lies at place i % capacity.
/// </summary>
/// <param name="problem">Its queries are the new tokens.</param>
internal sealed class AttentionAppendKernels(AttentionProblem problem)
{
    private const int Threads = 128;

    private static readonly ConcurrentDictionary<RotaryTile, KernelVariant> s_variants = new();

    public required int Capacity { get; init; }

    /// <summary>The default if nothing turns.</summary>
    public required RotaryTurns Turns { get; init; }

    /// <summary>int32 [B]: tokens of each row before.</summary>
    public required nint Lengths { get; init; }

    /// <summary>int32 [B], the position of each row's token 0; 0 if that is 0.</summary>
    public required nint Bases { get; init; }

    /// <summary>Kernels that stand for all.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) =>
        RotaryTile.All.Where(tile => !tile.IsInterleaved && tile.Element != ElementType.Float32).Select(Variant);

    /// <param name="q">[B, T, H, K] or packed; the default if nothing turns.</param>
    /// <param name="turned">Likewise.</param>
    /// <param name="k">[B, T, Hkv, K] or packed.</param>
    /// <param name="v">[B, T, Hkv, V] or packed.</param>
    /// <param name="keys">[B, capacity, Hkv, K].</param>
    /// <param name="values">[B, capacity, Hkv, V].</param>
    /// <param name="newLengths">int32 [B]: tokens of each row afterwards.</param>
    public void Append(
        TensorView q, TensorView turned, TensorView k, TensorView v, TensorView keys, TensorView values, nint newLengths)
    {
        var multiples = (long)(uint)(Turns.Pairs | problem.KeySize | problem.ValueSize);
        foreach (var view in (ReadOnlySpan<TensorView>)[q, turned, k, v, keys, values])
            multiples |= view.Multiples(problem.Element);
        var tile = RotaryTile.Of(problem.Element, isInterleaved: false, multiples);
        var features = (problem.Heads + problem.KvHeads) * (long)problem.KeySize + (long)problem.KvHeads * problem.ValueSize;
        var parts = Math.Clamp(features / (2 * tile.Vector * Threads), 1, ushort.MaxValue);
        var tokens = checked((uint)((long)problem.Queries.Count * problem.Queries.Length));
        KernelLibrary.Get(problem.Device, s_variants.GetOrAdd(tile, Variant)).Launch(
            tokens, (uint)parts, 1, LaunchStream.Current, new Parameters
            {
                Q = q,
                Turned = turned,
                K = k,
                V = v,
                Keys = keys,
                Values = values,
                Tokens = problem.Queries,
                Lengths = Lengths,
                Bases = Bases,
                NewLengths = newLengths,
                Capacity = Capacity,
                Heads = problem.Heads,
                KvHeads = problem.KvHeads,
                KeySize = problem.KeySize,
                ValueSize = problem.ValueSize,
                Turns = Turns,
            });
    }

    private static KernelVariant Variant(RotaryTile tile) =>
        new("Attention/append.cu", "attention_append", tile.Defines, Threads, SharedBytes: 0);

    /// <summary>AttentionAppend of append.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct Parameters
    {
        public TensorView Q;
        public TensorView Turned;
        public TensorView K;
        public TensorView V;
        public TensorView Keys;
        public TensorView Values;
        public SequenceLayout Tokens;
        public nint Lengths;
        public nint Bases;
        public nint NewLengths;
        public int Capacity;
        public int Heads;
        public int KvHeads;
        public int KeySize;
        public int ValueSize;
        public RotaryTurns Turns;
    }
}
