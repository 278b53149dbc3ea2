using System.Collections.Concurrent;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// Gated linear attention of small heads, on a GPU: the launches of Gla/small_*.cu. q, k, v, g and the gradients, of which every
/// query head has its own, are [B, T, H or Hkv, K or V]; states are dense float32 [S, H, K, V].
/// </summary>
/// <remarks>
/// A value that is not finite reaches the outputs of its channel from its token on, and of up to 15 tokens before it.
/// </remarks>
internal sealed class GlaSmallKernels
{
    private static readonly ConcurrentDictionary<(GlaSmallTile, bool, int), KernelVariant> s_variants = new();
    private static readonly ConcurrentDictionary<GlaSmallCluster, KernelVariant> s_clusters = new();
    private static readonly ExpectedKernels<(GlaSmallTile Tile, int Vector)> s_expected =
        new(static call => [Variant(call.Tile, backward: true, call.Vector)]);

    public required GpuDevice Device { get; init; }

    public required GlaSmallTile Tile { get; init; }

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

    /// <summary>Floats of the states that <see cref="Forward"/> leaves for <see cref="Backward"/>.</summary>
    public long SavedStateCount => Slots * Heads * Tile.StateSize;

    // fla::GlaBlock::slot; packed sequences leave gaps.
    private long Slots => Sequences.Offsets == 0
        ? (long)Sequences.Count * GlaChunkKernels.ChunkCount(Time, Tile.Tokens)
        : Time / Tile.Tokens + Sequences.Count;

    private int Lines => checked(Sequences.Count * Heads);

    private GlaChunkParameters.Shape Shape => new()
    {
        Sequences = Sequences,
        Heads = Heads,
        Group = Heads / KvHeads,
        KeySize = KeySize,
        ValueSize = ValueSize,
        Segments = 1,
        SegmentChunks = GlaChunkKernels.ChunkCount(Sequences.Length, GlaSmallTile.BlockTokens),
    };

    /// <summary>Kernels that stand for all: every tile of bfloat16, and one of each other type and alignment.</summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        const ElementType BFloat16 = ElementType.BFloat16, Float16 = ElementType.Float16, Float32 = ElementType.Float32;
        (GlaSmallTile tile, int vector)[] cases =
        [
            (new(8, 8, 16, 8, BFloat16, BFloat16), 8),
            (new(8, 16, 16, 8, BFloat16, BFloat16), 8),
            (new(16, 8, 16, 4, BFloat16, BFloat16), 8),
            (new(16, 16, 16, 4, BFloat16, BFloat16), 8),
            (new(16, 16, 8, 4, BFloat16, BFloat16), 8),
            (new(8, 8, 8, 8, BFloat16, Float32), 8),
            (new(16, 16, 4, 2, BFloat16, Float32), 4),
            (new(16, 16, 16, 1, Float16, Float32), 1),
            (new(8, 16, 16, 2, Float16, Float16), 2),
        ];
        foreach (var (tile, vector) in cases)
        {
            yield return Variant(tile, backward: false, vector);
            yield return Variant(tile, backward: true, vector);
        }
        if (!target.IsHopper)
            yield break;
        var saved = cases[0].tile.Tokens;
        foreach (var blocks in new[] { 1, 2, 4, 8 })
            foreach (var tiles in new[] { 1, 2 })
                foreach (var boxes in blocks < 8 ? new[] { false, true } : [false])
                    yield return new GlaSmallCluster(8, tiles, blocks, boxes, ElementType.BFloat16, saved).Forward();
        foreach (var boxes in new[] { false, true })
            yield return new GlaSmallCluster(11, 2, 3, boxes, ElementType.BFloat16, saved).Forward();
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
    public void Forward(TensorView q, TensorView k, TensorView v, TensorView g, nint initialState, TensorView o, nint finalState,
        nint savedStates)
    {
        var vector = Vector(g, q, k, v);
        if (savedStates != 0)
            s_expected.Begin(Device, (Tile, vector));
        var parameters = new GlaSmallParameters.Forward
        {
            Shape = Shape,
            Q = q,
            K = k,
            V = v,
            G = g,
            O = o,
            Initial = initialState,
            Final = finalState,
            States = savedStates,
            Scale = Scale,
        };
        var cluster = GlaSmallCluster.Choose(Tile, KeySize, ValueSize, Sequences.Count, Heads, Sequences.Length, vector,
            BoxesFit(q, k, v, g), (Device.Target!, Device.Info.MultiprocessorCount));
        if (cluster is not null)
            LaunchClusters(cluster, parameters);
        else
            Launch(backward: false, vector, parameters);
    }

    /// <summary>The gradients of q, k, v, g and the initial state.</summary>
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
    /// <param name="finalStateGradient">0 for zeros.</param>
    /// <param name="initialStateGradient">0 if unwanted.</param>
    public void Backward(TensorView q, TensorView k, TensorView v, TensorView g, TensorView outputGradient,
        TensorView queryGradient, TensorView keyGradient, TensorView valueGradient, TensorView decayGradient, nint savedStates,
        nint finalStateGradient, nint initialStateGradient) =>
        Launch(backward: true, Vector(g, q, k, v, outputGradient), new GlaSmallParameters.Backward
        {
            Shape = Shape,
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
            FinalGradient = finalStateGradient,
            InitialGradient = initialStateGradient,
            Scale = Scale,
        });

    private static KernelVariant Variant(GlaSmallTile tile, bool backward, int vector) =>
        s_variants.GetOrAdd((tile, backward, vector),
            static key => key.Item2 ? key.Item1.Backward(key.Item3) : key.Item1.Forward(key.Item3));

    /// <summary>Of the inputs, and so of dense outputs.</summary>
    private int Vector(TensorView g, params ReadOnlySpan<TensorView> others) => Math.Min(
        TensorView.Vector(Tile.Gate, KeySize | ValueSize, g), TensorView.Vector(Tile.Element, KeySize | ValueSize, others));

    /// <summary>Whether Hopper's copy engine can bring tokens of several heads at once, in the order of the recurrence.</summary>
    private bool BoxesFit(params ReadOnlySpan<TensorView> inputs)
    {
        var fit = Sequences.Offsets == 0 && Sequences.IsReversed == 0 && Heads == KvHeads && Time > 1;
        foreach (var view in inputs)
            fit &= view.Head == KeySize && view.Time >= Heads * KeySize && (view.Batch >= view.Time || Sequences.Count == 1);
        return fit;
    }

    private void LaunchClusters(GlaSmallCluster cluster, in GlaSmallParameters.Forward call)
    {
        if (Lines == 0)
            return;
        TensorMap Map(TensorView view) => !cluster.Boxes ? default : new MappedTensor(
            view, Tile.Element, Sequences.Count, Time, 1, Heads * KeySize, GlaSmallCluster.Heads * KeySize,
            GlaSmallTile.BlockTokens).Map();
        KernelLibrary.Get(Device, s_clusters.GetOrAdd(cluster, static cluster => cluster.Forward())).Launch(
            checked((uint)(cluster.Blocks * Sequences.Count)), (uint)(Heads / GlaSmallCluster.Heads), 1, LaunchStream.Current,
            new GlaSmallParameters.Cluster
            {
                Q = Map(call.Q),
                K = Map(call.K),
                V = Map(call.V),
                G = Map(call.G),
                Call = call,
            });
    }

    private void Launch<TParameters>(bool backward, int vector, in TParameters parameters)
        where TParameters : unmanaged
    {
        if (Lines > 0)
            KernelLibrary.Get(Device, Variant(Tile, backward, vector))
                .Launch((uint)Lines, 1, 1, LaunchStream.Current, parameters);
    }
}
