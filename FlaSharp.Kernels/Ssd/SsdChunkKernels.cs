using System.Collections.Concurrent;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Ssd;

/// <summary>
/// The state space duality over chunks, on a GPU: the launches of Ssd/*.cu but the recurrence. x, z, y are [B, T, H, P], b and c
/// [B, T, G, N], dt [B, T, H, 1]; states are dense float32 [S, H, P, N].
/// </summary>
/// <remarks>
/// A sequence is cut into <see cref="Segments"/>. Where there are several, a pass over the states alone comes first, which works
/// in <see cref="SegmentStateCount"/> and <see cref="SegmentDecayCount"/> floats.
/// </remarks>
internal sealed class SsdChunkKernels
{
    private const int JoinThreads = 256;
    private const int StepThreads = 512;
    private const int WarpSize = 32;

    private static readonly KernelVariant s_join = new("Gla/segment_scan.cu", "gla_segment_scan", [], JoinThreads, 0);
    private static readonly KernelVariant[] s_steps = [.. ElementTypes.All.Select(type => StepVariant("steps", type))];
    private static readonly KernelVariant[] s_stepsBackward =
        [.. ElementTypes.All.Select(type => StepVariant("steps_backward", type))];

    private static readonly ConcurrentDictionary<(SsdTile, Pass, int), KernelVariant> s_variants = new();
    private static readonly ExpectedKernels<(SsdTile Tile, ElementType Step, int Vector)> s_expected = new(static call =>
    [
        Variant(call.Tile, Pass.BackwardScan, call.Vector), Variant(call.Tile, Pass.Backward, call.Vector),
        s_stepsBackward[(int)call.Step],
    ]);

    private enum Pass
    {
        Forward,
        ForwardStates,
        BackwardScan,
        BackwardStates,
        Backward,
    }

    public required GpuDevice Device { get; init; }

    public required SsdTile Tile { get; init; }

    public required GlaSegments Segments { get; init; }

    /// <summary>Tokens of each batch row: T.</summary>
    public required int Time { get; init; }

    public required SequenceLayout Sequences { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>G, the groups of heads that share b and c.</summary>
    public required int Groups { get; init; }

    /// <summary>P.</summary>
    public required int HeadSize { get; init; }

    /// <summary>N.</summary>
    public required int StateSize { get; init; }

    /// <summary>Of dt.</summary>
    public required ElementType Step { get; init; }

    public required SsdStepRule Rule { get; init; }

    /// <summary>float32 D, or 0.</summary>
    public required nint Direct { get; init; }

    /// <summary>Whether D is [H, P], and not [H].</summary>
    public required bool DirectPerChannel { get; init; }

    /// <summary>Floats of the step sizes, and as many of the sums of their log-decays, that <see cref="Steps"/> leaves.</summary>
    public long StepCount => Slots * SsdTile.StepChunk;

    /// <summary>bfloat16 numbers of the states that <see cref="Forward"/> leaves for backward.</summary>
    public long SavedStateCount => SlotsOf(SsdTile.Span) * Heads * StateValues * Tile.Keys;

    /// <summary>Floats, if there are several segments.</summary>
    public long SegmentStateCount => SegmentDecayCount * HeadSize * StateSize;

    /// <summary>Floats, if there are several segments.</summary>
    public long SegmentDecayCount => (long)Lines * Segments.Count;

    /// <summary>The sets of heads of a group, each of which backward adds up the gradients of b and c for.</summary>
    public int SetsOfGroup => (HeadsOfGroup + HeadsOfSet - 1) / HeadsOfSet;

    /// <summary>Floats that <see cref="Backward"/> leaves for <see cref="StepsBackward"/>.</summary>
    public long TokenCount => KeySlices * StepCount * 4;

    /// <summary>As <see cref="TokenCount"/>.</summary>
    public long ProductCount => KeySlices * Slots;

    /// <summary>Spans of all sequences, or a few more: <see cref="StepsBackward"/> leaves sums over each.</summary>
    public long Spans => SlotsOf(SsdTile.Span);

    private int Lines => checked(Sequences.Count * Heads);

    private int HeadsOfGroup => Heads / Groups;

    private int ValueTiles => Tile.ValueTiles(HeadSize);

    private int StateValues => ValueTiles * Tile.Values;

    private int KeySlices => Tile.KeySlices(StateSize);

    private int Chunks => GlaChunkKernels.ChunkCount(Sequences.Length, SsdTile.StepChunk);

    private long Slots => SlotsOf(SsdTile.StepChunk) * Heads;

    /// <summary>
    /// As many as make the fewest rounds of blocks: each set's block goes through its heads one after the other.
    /// </summary>
    private int HeadsOfSet
    {
        get
        {
            const int MostSets = 16;
            var blocks = (long)Sequences.Count * Chunks * Groups * KeySlices;
            var (best, bestCost) = (HeadsOfGroup, long.MaxValue);
            for (var sets = 1; sets <= Math.Min(MostSets, HeadsOfGroup); sets++)
            {
                var heads = (HeadsOfGroup + sets - 1) / sets;
                var multiprocessors = Device.Info.MultiprocessorCount;
                var cost = ((blocks * sets) + multiprocessors - 1) / multiprocessors * (heads + 1); // and what is done once
                if (cost < bestCost)
                    (best, bestCost) = (heads, cost);
            }
            return best;
        }
    }

    /// <summary>Kernels that stand for all: square tiles of bfloat16, and a few of other types, shapes and alignments.</summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        const ElementType BFloat16 = ElementType.BFloat16;
        (int headSize, int stateSize, ElementType element, int vector)[] cases =
        [
            .. SsdTile.Sizes.Where(size => target.IsHopper || size is 64 or 256).Select(size => (size, size, BFloat16, 8)),
            (64, 128, BFloat16, 8), (128, 32, ElementType.Float16, 1),
        ];
        foreach (var variant in s_steps.Concat(s_stepsBackward))
            yield return variant;
        foreach (var (headSize, stateSize, element, vector) in cases)
            if (SsdTile.Choose(headSize, stateSize, element, target, out _) is { } tile)
                foreach (var pass in Enum.GetValues<Pass>())
                    yield return Variant(tile, pass, vector);
    }

    /// <summary>The step sizes and the sums of their log-decays, which all that follows reads.</summary>
    /// <param name="dt">[B, T, H, 1].</param>
    /// <param name="steps"><see cref="StepCount"/> floats.</param>
    /// <param name="sums">As many.</param>
    public void Steps(TensorView dt, nint steps, nint sums) =>
        Launch(s_steps[(int)Step], Sequences.Count * Chunks, StepBlocks, new SsdParameters.Steps
        {
            Sequences = Sequences,
            Dt = dt,
            Rule = Rule.Parameters,
            StepSizes = steps,
            Sums = sums,
            Heads = Heads,
            Chunks = Chunks,
        });

    /// <summary>y and the final state.</summary>
    /// <param name="x">[B, T, H, P].</param>
    /// <param name="b">[B, T, G, N].</param>
    /// <param name="c">[B, T, G, N].</param>
    /// <param name="z">[B, T, H, P], or none.</param>
    /// <param name="steps">Of <see cref="Steps"/>.</param>
    /// <param name="sums">Of <see cref="Steps"/>.</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="y">[B, T, H, P].</param>
    /// <param name="finalState">0 if unwanted.</param>
    /// <param name="savedStates">0 if no backward follows.</param>
    /// <param name="segmentStates">0 if there is one segment.</param>
    /// <param name="segmentDecays">0 if there is one segment.</param>
    public void Forward(TensorView x, TensorView b, TensorView c, TensorView z, nint steps, nint sums, nint initialState,
        TensorView y, nint finalState, nint savedStates, nint segmentStates, nint segmentDecays)
    {
        var vector = Vector(x, b, c);
        if (savedStates != 0)
            s_expected.Begin(Device, (Tile, Step, vector));
        Scan(backward: false, vector, new SsdParameters.Scan
        {
            Query = c,
            Key = b,
            Input = x,
            Output = y,
            Gate = z,
            StepSizes = steps,
            Sums = sums,
            Initial = initialState,
            Final = finalState,
            States = savedStates,
        }, segmentStates, segmentDecays);
    }

    /// <summary>The gradients of x and of the states: the initial one, and those after each span.</summary>
    /// <param name="outputGradient">[B, T, H, P].</param>
    /// <param name="b">[B, T, G, N].</param>
    /// <param name="c">[B, T, G, N].</param>
    /// <param name="steps">Of <see cref="Steps"/>.</param>
    /// <param name="sums">Of <see cref="Steps"/>.</param>
    /// <param name="finalStateGradient">0 for zeros.</param>
    /// <param name="inputGradient">[B, T, H, P].</param>
    /// <param name="initialStateGradient">0 if unwanted.</param>
    /// <param name="savedStateGradients">As many as the saved states; 0 if unwanted.</param>
    /// <param name="segmentStates">0 if there is one segment.</param>
    /// <param name="segmentDecays">0 if there is one segment.</param>
    public void BackwardScan(TensorView outputGradient, TensorView b, TensorView c, nint steps, nint sums,
        nint finalStateGradient, TensorView inputGradient, nint initialStateGradient, nint savedStateGradients,
        nint segmentStates, nint segmentDecays) =>
        Scan(backward: true, Vector(outputGradient, b, c, inputGradient), new SsdParameters.Scan
        {
            Query = b,
            Key = c,
            Input = outputGradient,
            Output = inputGradient,
            StepSizes = steps,
            Sums = sums,
            Initial = finalStateGradient,
            Final = initialStateGradient,
            States = savedStateGradients,
        }, segmentStates, segmentDecays);

    /// <summary>The gradients of b and c, and what <see cref="StepsBackward"/> makes those of the step sizes of.</summary>
    /// <param name="x">[B, T, H, P].</param>
    /// <param name="b">[B, T, G, N].</param>
    /// <param name="c">[B, T, G, N].</param>
    /// <param name="outputGradient">[B, T, H, P].</param>
    /// <param name="steps">Of <see cref="Steps"/>.</param>
    /// <param name="sums">Of <see cref="Steps"/>.</param>
    /// <param name="savedStates">Of <see cref="Forward"/>.</param>
    /// <param name="savedStateGradients">Of <see cref="BackwardScan"/>.</param>
    /// <param name="gradientB">float32 [B, T, G * <see cref="SetsOfGroup"/>, N]: the caller adds up the sets.</param>
    /// <param name="gradientC">As <paramref name="gradientB"/>.</param>
    /// <param name="tokens"><see cref="TokenCount"/> floats.</param>
    /// <param name="products"><see cref="ProductCount"/> floats.</param>
    public void Backward(TensorView x, TensorView b, TensorView c, TensorView outputGradient, nint steps, nint sums,
        nint savedStates, nint savedStateGradients, TensorView gradientB, TensorView gradientC, nint tokens, nint products)
    {
        var sets = Groups * SetsOfGroup;
        var parameters = new SsdParameters.Backward
        {
            Shape = Shape(sets, 1, Chunks, 1),
            B = b,
            C = c,
            X = x,
            GradOutput = outputGradient,
            GradB = gradientB,
            GradC = gradientC,
            StepSizes = steps,
            Sums = sums,
            States = savedStates,
            StateGrads = savedStateGradients,
            Tokens = tokens,
            Products = products,
            Slots = Slots,
            StateValues = StateValues,
            StateKeys = Tile.Keys,
            Heads = Heads,
            Group = HeadsOfGroup,
            Set = HeadsOfSet,
            Sets = SetsOfGroup,
        };
        Launch(Variant(Tile, Pass.Backward, Vector(x, b, c, outputGradient)), checked(Sequences.Count * Chunks * sets), KeySlices,
            parameters);
    }

    /// <summary>The gradient of dt, and sums over each span.</summary>
    /// <param name="dt">[B, T, H, 1].</param>
    /// <param name="stepGradient">[B, T, H, 1].</param>
    /// <param name="tokens">Of <see cref="Backward"/>.</param>
    /// <param name="products">Of <see cref="Backward"/>.</param>
    /// <param name="totals">[<see cref="Spans"/>, H, 3]: the gradients of the rates, the biases and of D as [H]. Zeros before, as
    /// there are spans that no sequence has.</param>
    public void StepsBackward(TensorView dt, TensorView stepGradient, nint tokens, nint products, nint totals)
    {
        var spans = GlaChunkKernels.ChunkCount(Sequences.Length, SsdTile.Span);
        Launch(s_stepsBackward[(int)Step], checked(Sequences.Count * spans), StepBlocks, new SsdParameters.StepsBackward
        {
            Sequences = Sequences,
            Dt = dt,
            GradDt = stepGradient,
            Rule = Rule.Parameters,
            Tokens = tokens,
            Products = products,
            Totals = totals,
            Slots = Slots,
            Slices = KeySlices,
            Heads = Heads,
            Spans = spans,
        });
    }

    private static KernelVariant StepVariant(string pass, ElementType type) =>
        new($"Ssd/{pass}.cu", $"ssd_{pass}", [$"TYPE={type.Name()}", $"THREADS={StepThreads}"], StepThreads, 0);

    private static KernelVariant Variant(SsdTile tile, Pass pass, int vector) =>
        s_variants.GetOrAdd((tile, pass, vector), static key => key.Item2 == Pass.Backward
            ? key.Item1.Backward(key.Item3)
            : key.Item1.Scan(key.Item3, backward: key.Item2 is Pass.BackwardScan or Pass.BackwardStates,
                statesOnly: key.Item2 is Pass.ForwardStates or Pass.BackwardStates));

    private int StepBlocks => (Heads + (StepThreads / WarpSize) - 1) / (StepThreads / WarpSize);

    private void Scan(bool backward, int vector, SsdParameters.Scan parameters, nint segmentStates, nint segmentDecays)
    {
        parameters.Shape = Shape(Heads, HeadsOfGroup, Segments.Count, Segments.Chunks);
        (parameters.Direct, parameters.DirectHead, parameters.DirectChannel) =
            (Direct, DirectPerChannel ? HeadSize : 1, DirectPerChannel ? 1 : 0);
        var (states, outputs) = backward ? (Pass.BackwardStates, Pass.BackwardScan) : (Pass.ForwardStates, Pass.Forward);
        if (Segments.Count > 1)
        {
            Launch(Variant(Tile, states, vector), Lines * Segments.Count, ValueTiles,
                parameters with { Initial = 0, Local = segmentStates, Decay = segmentDecays });
            var stateSize = HeadSize * StateSize;
            var size = (long)Lines * stateSize;
            Launch(s_join, checked((int)((size + JoinThreads - 1) / JoinThreads)), 1, new GlaChunkParameters.Scan
            {
                States = segmentStates,
                Decay = segmentDecays,
                Initial = parameters.Initial,
                Size = size,
                Segments = Segments.Count,
                KeySize = 1, // one decay for the whole state
                ValueSize = stateSize,
                Backward = backward ? 1 : 0,
            });
            parameters.Initial = segmentStates;
        }
        Launch(Variant(Tile, outputs, vector), checked(Lines * Segments.Count), ValueTiles, parameters);
    }

    private GlaChunkParameters.Shape Shape(int heads, int group, int segments, int segmentChunks) => new()
    {
        Sequences = Sequences,
        Heads = heads,
        Group = group,
        KeySize = StateSize,
        ValueSize = HeadSize,
        Segments = segments,
        SegmentChunks = segmentChunks,
    };

    // fla::GlaBlock::slot and fla::span_slot; packed sequences leave gaps.
    private long SlotsOf(int tokens) => Sequences.Offsets == 0
        ? (long)Sequences.Count * GlaChunkKernels.ChunkCount(Time, tokens)
        : (Time / tokens) + Sequences.Count;

    /// <summary>Of the given views, and so of dense outputs.</summary>
    private int Vector(params ReadOnlySpan<TensorView> views) => TensorView.Vector(Tile.Element, HeadSize | StateSize, views);

    private void Launch<TParameters>(KernelVariant variant, int gridX, int gridY, in TParameters parameters)
        where TParameters : unmanaged
    {
        if (gridX > 0)
            KernelLibrary.Get(Device, variant).Launch((uint)gridX, (uint)gridY, 1, LaunchStream.Current, parameters);
    }
}
