using System.Collections.Concurrent;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Ssd;

/// <summary>The constants that Ssd/chunk_*.cu are compiled with: what holds a head and fits into a block's memory.</summary>
/// <param name="Keys">KEY_TILE of the scan: N, rounded up.</param>
/// <param name="Values">VALUE_TILE of the scan: P, rounded up, or a part of it.</param>
/// <param name="Chunk">Tokens that the scan works on together.</param>
/// <param name="SliceKeys">KEY_TILE of backward: N, rounded up, or a part of it.</param>
/// <param name="SliceValues">VALUE_TILE of backward: channels in shared memory at once.</param>
/// <param name="Element">Of x, b, c and y.</param>
/// <param name="Target">What it is compiled for.</param>
internal sealed record SsdTile(
    int Keys, int Values, int Chunk, int SliceKeys, int SliceValues, ElementType Element, CompilerTarget Target)
{
    /// <summary>Tokens that the log-decays are summed up over, and that backward works on together.</summary>
    public const int StepChunk = 64;

    /// <summary>Tokens between the states that are saved for backward.</summary>
    public const int Span = 128;

    private const int ShortChunk = 32;
    private const int MostStages = 3;
    private const int FewestStages = 2;
    private const int ProducerWarps = 4;
    private const int MostConsumerWarps = 4;
    private const int BackwardWarps = 8;
    private const int BarrierBytes = 2 * sizeof(long); // of a chunk on its way
    private const int ReservedBytes = 1 << 10; // of each block, by the driver
    private static readonly int[] s_sizes = [16, 32, 64, 128, 256];
    private static readonly ConcurrentDictionary<(int, int, ElementType, CompilerTarget), (SsdTile?, string)> s_choices = new();

    /// <summary>What P and N are rounded up to.</summary>
    public static IReadOnlyList<int> Sizes => s_sizes;

    /// <summary>
    /// Whether the scan uses Hopper's products (wgmma): four warps share 64 channels, and two such groups keep a multiprocessor
    /// busy.
    /// </summary>
    public bool UsesHopper => Hopper(Keys, Values, Target);

    private int ConsumerWarps => UsesHopper ? Values / 16 : Math.Min(MostConsumerWarps, Values / 16);

    // Small states leave registers for two blocks on a multiprocessor.
    private int MinBlocks => Values > 64 || Keys > 128 ? 1 : 2;

    // Of chunk_scan.cu, which asserts it, as does chunk_backward.cu.
    private int StatesStageBytes => (2 * Chunk * (Keys + Values)) + 1024 + BarrierBytes;

    private int ScanStageBytes
    {
        get
        {
            var output = Values > Keys ? 2 * Chunk * Values : 0; // smaller ones take the queries' place
            return StatesStageBytes + (2 * Chunk * (Keys + Chunk)) + output;
        }
    }

    /// <summary>The tile for a call.</summary>
    /// <param name="headSize">P.</param>
    /// <param name="stateSize">N.</param>
    /// <param name="element">Of x, b and c.</param>
    /// <param name="target">The GPU's.</param>
    /// <param name="reason">Why there is none.</param>
    public static SsdTile? Choose(int headSize, int stateSize, ElementType element, CompilerTarget target, out string reason)
    {
        var key = (headSize, stateSize, element, target);
        if (!s_choices.TryGetValue(key, out var choice))
            choice = s_choices.GetOrAdd(key, Choose(headSize, stateSize, element, target));
        reason = choice.Item2;
        return choice.Item1;
    }

    /// <summary>Outputs and states; or, <paramref name="backward"/>, gradients of inputs and states.</summary>
    /// <param name="vector">VECTOR: elements that are aligned together everywhere; 1, 2, 4 or 8.</param>
    /// <param name="backward">Whether it runs against time.</param>
    /// <param name="statesOnly">Whether only the states at the ends of segments are wanted.</param>
    public KernelVariant Scan(int vector, bool backward, bool statesOnly)
    {
        var stageBytes = statesOnly ? StatesStageBytes : ScanStageBytes;
        var stages = Fits(MostStages * stageBytes, MinBlocks) ? MostStages : FewestStages;
        // On Hopper more registers for the warps that carry the state than for those that load. They share what the block is
        // launched with, 65,536 / 384 threads in whole eights: 4 x 88 + 8 x 208 = 12 x 168. For more they would wait forever.
        var (producers, consumers) = UsesHopper ? (88, 208) : (0, 0);
        return Variant("scan", vector, 32 * (ProducerWarps + ConsumerWarps), MinBlocks, stages * stageBytes, Keys, Values,
            $"CHUNK={Chunk}", $"STAGES={stages}", $"PRODUCERS={ProducerWarps}", $"CONSUMERS={ConsumerWarps}",
            $"PRODUCER_REGISTERS={producers}", $"CONSUMER_REGISTERS={consumers}", $"BACKWARD={(backward ? 1 : 0)}",
            $"STATES_ONLY={(statesOnly ? 1 : 0)}", $"HOPPER={(UsesHopper ? 1 : 0)}");
    }

    /// <summary>The gradients of b, c and the step sizes.</summary>
    /// <param name="vector">As of <see cref="Scan"/>.</param>
    public KernelVariant Backward(int vector)
    {
        var stages = Fits(BackwardBytes(MostStages)) ? MostStages : FewestStages;
        return Variant("backward", vector, 32 * BackwardWarps, 1, BackwardBytes(stages), SliceKeys, SliceValues,
            $"STAGES={stages}", $"BACKWARD_WARPS={BackwardWarps}");
    }

    /// <summary>Blocks that share the channels of a head.</summary>
    /// <param name="headSize">P.</param>
    public int ValueTiles(int headSize) => (headSize + Values - 1) / Values;

    /// <summary>Blocks of backward that share the state's numbers.</summary>
    /// <param name="stateSize">N.</param>
    public int KeySlices(int stateSize) => (stateSize + SliceKeys - 1) / SliceKeys;

    private static (SsdTile?, string) Choose(int headSize, int stateSize, ElementType element, CompilerTarget target)
    {
        if (element == ElementType.Float32)
            return (null, "The kernels over chunks take bfloat16 and float16.");
        if (stateSize > s_sizes[^1])
            return (null, $"N = {stateSize}: the kernels over chunks take N up to {s_sizes[^1]}.");

        var (keys, values) = (RoundUp(stateSize), Math.Min(RoundUp(headSize), RoundUp(stateSize) > 128 ? 64 : 128));
        // Single warps have no registers for the outputs of a long chunk beside a large state.
        var isLong = keys * values < 64 * 64 || Hopper(keys, values, target);
        foreach (var chunk in isLong ? new[] { StepChunk, ShortChunk } : [ShortChunk])
            foreach (var (sliceKeys, sliceValues) in new[] { (128, 64), (128, 32), (64, 64), (64, 32), (32, 32) })
            {
                var tile = new SsdTile(
                    keys, values, chunk, Math.Min(keys, sliceKeys), Math.Min(values, sliceValues), element, target);
                if (tile.Fits(FewestStages * tile.ScanStageBytes) && tile.Fits(tile.BackwardBytes(FewestStages)))
                    return (tile, "");
            }
        return (null, $"P = {headSize} and N = {stateSize} need more shared memory than the {target.MaxSharedBytes >> 10} KiB "
            + $"of a block of {target}.");
    }

    private static bool Hopper(int keys, int values, CompilerTarget target) => target.IsHopper && keys >= 64 && values >= 128;

    private static int RoundUp(int size) => s_sizes.FirstOrDefault(tile => tile >= size, s_sizes[^1]);

    private int BackwardBytes(int stages)
    {
        var stage = (6 * StepChunk * SliceValues) + (4 * SliceValues * SliceKeys) + (4 * sizeof(float) * StepChunk);
        var keys = 2 * StepChunk * SliceKeys;
        var (down, across) = (StepChunk / 16, Math.Min(StepChunk / 16, BackwardWarps * 16 / StepChunk)); // fla::PairRows
        var columns = Math.Min(BackwardWarps / (SliceKeys >= 8 * BackwardWarps ? 2 : down), SliceKeys / 16); // fla::WarpTile
        var sums = sizeof(float) * ((StepChunk * (across + down + 2 + (2 * columns))) + BackwardWarps);
        return Math.Max(stages * stage, keys + (4 * StepChunk * StepChunk)) + (2 * keys) + sums;
    }

    private bool Fits(int sharedBytes, int blocks = 1) =>
        blocks * (sharedBytes + ReservedBytes) <= Target.MaxSharedBytes + ReservedBytes;

    private KernelVariant Variant(string pass, int vector, int threads, int minBlocks, int sharedBytes, int keys, int values,
        params string[] defines) =>
        new($"Ssd/chunk_{pass}.cu", $"ssd_chunk_{pass}",
            [
                $"TYPE={Element.Name()}", $"KEY_TILE={keys}", $"VALUE_TILE={values}", $"VECTOR={vector}",
                $"MIN_BLOCKS={minBlocks}", $"SHARED={sharedBytes}", .. defines,
            ],
            threads, sharedBytes);
}
