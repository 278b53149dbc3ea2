using System.Collections.Concurrent;
using System.Numerics;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// Gated linear attention over chunks, on a GPU: the launches of Gla/chunk_*.cu. q, k, v, g and the gradients, of which every
/// query head has its own, are [B, T, H or Hkv, K or V]; states are dense float32 [S, H, K, V].
/// </summary>
/// <remarks>
/// A sequence is cut into <see cref="Segments"/>. Where there are several, a pass over the states alone comes first, which works
/// in <see cref="SegmentStateCount"/> and <see cref="SegmentDecayCount"/> floats. A value that is not finite reaches the outputs of
/// its channel from its token on, and of up to 15 tokens before it without Hopper's products.
/// </remarks>
internal sealed class GlaChunkKernels
{
    private const int ScanThreads = 256;
    private const int BFloat16Bytes = 2;

    private static readonly KernelVariant s_scan = new("Gla/segment_scan.cu", "gla_segment_scan", [], ScanThreads, 0);
    private static readonly ConcurrentDictionary<(GlaChunkTile, Pass, int), KernelVariant> s_variants = new();

    private static readonly ExpectedKernels<(GlaChunkTile Tile, int Vector)> s_expected = new(static call =>
    [
        Variant(call.Tile, Pass.StateBackward, call.Vector), Variant(call.Tile, Pass.Backward, call.Vector),
        Variant(call.Tile, Pass.BackwardPairs, call.Vector),
    ]);

    private enum Pass
    {
        Forward,
        ForwardClusters,
        State,
        StateBackward,
        Backward,
        BackwardPairs,
    }

    public required GpuDevice Device { get; init; }

    public required GlaChunkTile Tile { get; init; }

    public required GlaSegments Segments { get; init; }

    /// <summary>Tokens of each batch row: T.</summary>
    public required int Time { get; init; }

    public required SequenceLayout Sequences { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>Hkv, the heads of k, v and g: query head h reads head h / (H / Hkv).</summary>
    public required int KvHeads { get; init; }

    /// <summary>K.</summary>
    public required int KeySize { get; init; }

    /// <summary>V.</summary>
    public required int ValueSize { get; init; }

    public required float Scale { get; init; }

    /// <summary>
    /// bfloat16 numbers of the states that <see cref="Forward"/> leaves for backward, with an int32 mark for each at their end.
    /// </summary>
    public long SavedStateCount => SavedNumbers + Slots * Heads * (sizeof(int) / BFloat16Bytes);

    /// <summary>Floats, if there are several segments.</summary>
    public long SegmentStateCount => SegmentDecayCount * ValueSize;

    /// <summary>Floats, if there are several segments.</summary>
    public long SegmentDecayCount => (long)Lines * Segments.Count * KeySize;

    private int Lines => checked(Sequences.Count * Heads);

    private int Group => Heads / KvHeads;

    private int ValueTiles => Tile.ValueTiles(ValueSize);

    private int StateValues => ValueTiles * Tile.Values;

    private long SavedNumbers => Slots * Heads * StateValues * Tile.Terms * Tile.Keys;

    // fla::GlaBlock::slot; packed sequences leave gaps.
    private long Slots => Sequences.Offsets == 0
        ? (long)Sequences.Count * ChunkCount(Time, GlaChunkTile.GradientChunk(Tile.Element))
        : Time / GlaChunkTile.GradientChunk(Tile.Element) + Sequences.Count;

    /// <summary>Chunks that it takes to cover so many tokens.</summary>
    public static int ChunkCount(int tokens, int chunk) => (tokens + chunk - 1) / chunk;

    /// <summary>
    /// Kernels that stand for all: every tile of bfloat16 on Hopper, square ones elsewhere, and a few of other types and alignments.
    /// Of float32 the smallest sums, the most in a warp, and the largest head.
    /// </summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        const ElementType BFloat16 = ElementType.BFloat16, Float32 = ElementType.Float32;
        (int keys, int values, ElementType element, ElementType gate, int vector)[] cases =
        [
            .. from keys in GlaChunkTile.Sizes
               from values in GlaChunkTile.Sizes
               where target.IsHopper || keys == values
               select (keys, values, BFloat16, BFloat16, 8),
            (64, 64, BFloat16, BFloat16, 1),
            (64, 64, BFloat16, Float32, 8),
            (128, 128, ElementType.Float16, Float32, 1),
            (16, 64, Float32, Float32, 1),
            (128, 256, Float32, Float32, 4),
            (256, 256, Float32, Float32, 8),
        ];
        yield return s_scan;
        foreach (var (keys, values, element, gate, vector) in cases)
            foreach (var gradients in new[] { false, true })
            {
                if (GlaChunkTile.Choose(keys, values, element, gate, gradients, target, out _) is not { } tile)
                    continue;
                foreach (var variant in Of(
                    tile, gradients ? Enum.GetValues<Pass>() : [Pass.Forward, Pass.ForwardClusters, Pass.State]))
                    yield return variant;
                var portable = tile with { IsPortable = true };
                if (tile.UsesHopper)
                    yield return Variant(portable, Pass.Forward, vector);
                if (tile.BackwardUsesHopper && gradients && keys == values)
                    yield return Variant(portable, Pass.Backward, vector);
                if (gradients && keys == values && tile.Narrow() != tile)
                    foreach (var variant in Of(
                        tile.Narrow(), [Pass.Forward, Pass.ForwardClusters, Pass.State, Pass.StateBackward]))
                        yield return variant;

                IEnumerable<KernelVariant> Of(GlaChunkTile its, Pass[] passes) => passes
                    .Where(pass => pass != Pass.ForwardClusters || its.UsesClusters(values))
                    .Select(pass => Variant(its, pass, vector));
            }
    }

    /// <summary>o and the final state.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="o">[B, T, H, V].</param>
    /// <param name="finalState">0 if unwanted.</param>
    /// <param name="savedStates">0 if no backward follows.</param>
    /// <param name="segmentStates">0 if there is one segment.</param>
    /// <param name="segmentDecays">0 if there is one segment.</param>
    public void Forward(TensorView q, TensorView k, TensorView v, TensorView g, nint initialState, TensorView o, nint finalState,
        nint savedStates, nint segmentStates, nint segmentDecays)
    {
        var vector = Vector(g, q, k, v);
        if (savedStates != 0)
            s_expected.Begin(Device, (Tile, vector));
        if (Segments.Count > 1)
            initialState = JoinSegments(
                new() { X = k, Y = v, G = g, Scale = 1, XGroup = Group, YGroup = Group }, Pass.State, vector, initialState,
                segmentStates, segmentDecays);
        var pass = Tile.UsesClusters(ValueSize) ? Pass.ForwardClusters : Pass.Forward;
        Launch(pass, vector, Lines * Segments.Count, ValueTiles, new GlaChunkParameters.Forward
        {
            Shape = Shape(Segments with { Chunks = Segments.Chunks * (Tile.Chunk / Tile.ForwardChunk) }),
            Q = q,
            K = k,
            V = v,
            G = g,
            O = o,
            Initial = initialState,
            Final = finalState,
            States = savedStates,
            Plain = Marks(savedStates),
            Scale = Scale,
        });
    }

    /// <summary>The gradients of the states: of those that <see cref="Forward"/> saved and of the initial one.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="outputGradient">[B, T, H, V].</param>
    /// <param name="finalStateGradient">0 for zeros.</param>
    /// <param name="initialStateGradient">0 if unwanted.</param>
    /// <param name="savedStateGradients">As many as the saved states; 0 if unwanted.</param>
    /// <param name="segmentStates">0 if there is one segment.</param>
    /// <param name="segmentDecays">0 if there is one segment.</param>
    public void BackwardStates(TensorView q, TensorView g, TensorView outputGradient, nint finalStateGradient,
        nint initialStateGradient, nint savedStateGradients, nint segmentStates, nint segmentDecays)
    {
        var vector = Vector(g, q, outputGradient);
        var parameters = new GlaChunkParameters.State { X = q, Y = outputGradient, G = g, Scale = Scale, XGroup = 1, YGroup = 1 };
        if (Segments.Count > 1)
            finalStateGradient = JoinSegments(
                parameters, Pass.StateBackward, vector, finalStateGradient, segmentStates, segmentDecays);
        Launch(Pass.StateBackward, vector, Lines * Segments.Count, ValueTiles, parameters with
        {
            Shape = Shape(Segments),
            Initial = finalStateGradient,
            Final = initialStateGradient,
            States = savedStateGradients,
            Plain = Marks(savedStateGradients),
        });
    }

    /// <summary>The gradients of q, k, v and g.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="outputGradient">[B, T, H, V].</param>
    /// <param name="queryGradient">[B, T, H, K].</param>
    /// <param name="keyGradient">[B, T, H, K].</param>
    /// <param name="valueGradient">[B, T, H, V].</param>
    /// <param name="decayGradient">[B, T, H, K].</param>
    /// <param name="savedStates">Of <see cref="Forward"/>.</param>
    /// <param name="savedStateGradients">Of <see cref="BackwardStates"/>.</param>
    public void Backward(TensorView q, TensorView k, TensorView v, TensorView g, TensorView outputGradient,
        TensorView queryGradient, TensorView keyGradient, TensorView valueGradient, TensorView decayGradient, nint savedStates,
        nint savedStateGradients)
    {
        var count = ChunkCount(Sequences.Length, Tile.Chunk);
        var chunks = GlaSegments.Of(Math.Max(1, count), count); // a segment for each
        var blocks = checked(Lines * chunks.Count);
        var vector = Vector(g, q, k, v, outputGradient);
        var parameters = new GlaChunkParameters.Backward
        {
            Shape = Shape(chunks),
            Q = q,
            K = k,
            V = v,
            G = g,
            GradOutput = outputGradient,
            GradQ = queryGradient,
            GradK = keyGradient,
            GradV = valueGradient,
            GradG = decayGradient,
            States = savedStates,
            StateGrads = savedStateGradients,
            PlainStates = Marks(savedStates),
            PlainGrads = Marks(savedStateGradients),
            StateValues = StateValues,
            Scale = Scale,
            Blocks = blocks,
        };
        Launch(Pass.Backward, vector, blocks, 1, parameters);
        // Each block looks for the chunks that are left to it: as many as run at once.
        Launch(Pass.BackwardPairs, vector, Math.Min(blocks, Device.Info.MultiprocessorCount), 1, parameters);
    }

    private static KernelVariant Variant(GlaChunkTile tile, Pass pass, int vector) =>
        s_variants.GetOrAdd((tile, pass, vector), static key => key.Item2 switch
        {
            Pass.Forward => key.Item1.Forward(key.Item3),
            Pass.ForwardClusters => key.Item1.ForwardClusters(key.Item3),
            Pass.Backward => key.Item1.Backward(key.Item3),
            Pass.BackwardPairs => key.Item1.BackwardPairs(key.Item3),
            var pass => key.Item1.State(key.Item3, pass == Pass.StateBackward),
        });

    /// <summary>Leaves the state that each segment begins with, or its gradient, in <paramref name="segmentStates"/>.</summary>
    private nint JoinSegments(GlaChunkParameters.State parameters, Pass pass, int vector, nint initial, nint segmentStates,
        nint segmentDecays)
    {
        Launch(pass, vector, Lines * Segments.Count, ValueTiles,
            parameters with { Shape = Shape(Segments), Local = segmentStates, Decay = segmentDecays });
        var size = (long)Lines * KeySize * ValueSize;
        Launch(s_scan, checked((int)((size + ScanThreads - 1) / ScanThreads)), 1, new GlaChunkParameters.Scan
        {
            States = segmentStates,
            Decay = segmentDecays,
            Initial = initial,
            Size = size,
            Segments = Segments.Count,
            KeySize = KeySize,
            ValueSize = ValueSize,
            Backward = pass == Pass.StateBackward ? 1 : 0,
        });
        return segmentStates;
    }

    /// <summary>The marks of saved states, which follow them.</summary>
    private nint Marks(nint savedStates) => savedStates == 0 ? 0 : savedStates + checked((nint)(SavedNumbers * BFloat16Bytes));

    private GlaChunkParameters.Shape Shape(GlaSegments segments) => new()
    {
        Sequences = Sequences,
        Heads = Heads,
        Group = Group,
        KeySize = KeySize,
        ValueSize = ValueSize,
        Segments = segments.Count,
        SegmentChunks = segments.Chunks,
    };

    /// <summary>How many elements, up to 8, are aligned together in every row of the inputs, and so of dense outputs.</summary>
    private int Vector(TensorView g, params ReadOnlySpan<TensorView> others)
    {
        const int Most = 8;
        var multiples = Misalignment(g, Tile.Gate) | (long)KeySize | (long)ValueSize | Most;
        foreach (var view in others)
            multiples |= Misalignment(view, Tile.Element);
        return 1 << BitOperations.TrailingZeroCount(multiples);

        static long Misalignment(in TensorView view, ElementType type)
        {
            const int FloatsOfCopy = 4; // 16 bytes take no more of them
            var multiples = view.Multiples(type);
            return type == ElementType.Float32 && multiples % FloatsOfCopy == 0 ? 0 : multiples;
        }
    }

    private void Launch<TParameters>(Pass pass, int vector, int gridX, int gridY, in TParameters parameters)
        where TParameters : unmanaged =>
        Launch(Variant(Tile, pass, vector), gridX, gridY, parameters);

    private void Launch<TParameters>(KernelVariant variant, int gridX, int gridY, in TParameters parameters)
        where TParameters : unmanaged
    {
        if (gridX > 0)
            KernelLibrary.Get(Device, variant).Launch((uint)gridX, (uint)gridY, 1, LaunchStream.Current, parameters);
    }
}
