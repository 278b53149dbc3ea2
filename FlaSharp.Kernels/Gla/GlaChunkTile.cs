using System.Collections.Concurrent;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The constants that Gla/chunk_*.cu are compiled with: what holds a head and fits into a block's memory.</summary>
/// <param name="Keys">KEY_TILE: K, rounded up.</param>
/// <param name="Values">VALUE_TILE of the kernels that carry a state: V, rounded up, or a part of it.</param>
/// <param name="AllValues">VALUE_TILE of backward: V, rounded up.</param>
/// <param name="Chunk">Tokens that the states alone and backward work on together, and forward if it is small.</param>
/// <param name="Element">Of q, k, v and o.</param>
/// <param name="Gate">Of g.</param>
/// <param name="Target">What it is compiled for.</param>
internal sealed record GlaChunkTile(
    int Keys, int Values, int AllValues, int Chunk, ElementType Element, ElementType Gate, CompilerTarget Target)
{
    private const int ShortChunk = 32;
    private const int NarrowValues = 64;
    private const int MostStages = 3;
    private const int MostHopperStages = 4;
    private const int FewestStages = 2;
    private const int BarrierBytes = 2 * sizeof(long); // of a chunk on its way
    private const int ClusterSize = 2;
    private const int HopperSlice = 32; // values of a state in backward's shared memory
    private const int MarkBytes = 64; // static shared memory of chunk_backward_pairs.cu
    private const int ReservedBytes = 1 << 10; // of each block, by the driver
    private static readonly int[] s_sizes = [16, 32, 64, 128, 256];
    private static readonly ConcurrentDictionary<
        (int, int, ElementType, ElementType, bool, CompilerTarget), (GlaChunkTile?, string)> s_choices = new();

    /// <summary>The largest K and, of backward, V.</summary>
    public static int MaxSize => s_sizes[^1];

    /// <summary>What K and V are rounded up to.</summary>
    public static IReadOnlyList<int> Sizes => s_sizes;

    /// <summary>bfloat16 numbers that stand for one in products and saved states: float32 is the sum of two.</summary>
    public int Terms => Element.Bytes() / sizeof(short);

    /// <summary>
    /// Tokens that forward works on together. Large states take fewer products between tokens, and bear stronger decays, in short
    /// chunks; of small ones a chunk takes as long whatever its length. In float32 what fits.
    /// </summary>
    public int ForwardChunk => Element == ElementType.Float32 && !FitsForward(Chunk) ? Chunk / 2
        : Keys > 64 ? ShortChunk
        : Chunk;

    /// <summary>Whether all passes do without Hopper's products (wgmma) where they could use them.</summary>
    public bool IsPortable { get; init; }

    /// <summary>
    /// Whether forward uses Hopper's products (wgmma): four warps share 64 value channels, with the state of them all in registers.
    /// </summary>
    public bool UsesHopper => BackwardUsesHopper && !HasManyWarps;

    /// <summary>Whether backward uses Hopper's products: four warps share the tokens of a chunk.</summary>
    public bool BackwardUsesHopper =>
        Target.IsHopper && !IsPortable && Element != ElementType.Float32 && Keys >= 64 && Values >= 64;

    // The warps that carry a state hold 16 or 32 of its value channels and all key channels. 256 of these leave each warp 16 of the
    // others: twice the warps, and on Hopper more registers for those that carry it than for those that load and scale.
    private bool HasManyWarps => Keys > 128 && Values > NarrowValues;

    private int ProducerWarps => HasManyWarps ? 8 : 4;

    private int ConsumerWarps => HasManyWarps ? 8 : Math.Min(4, Values / 16);

    // Of backward: a thread has two key channels of a token or more.
    private int MostWarps => Math.Min(16, Chunk * Keys / 64);

    private bool FitsBackward => Fits(Math.Max(BackwardBytes(MostWarps), BackwardPairsBytes + MarkBytes));

    // Slices of states and of their gradients that backward's shared memory holds: with Hopper's products, for which copies in
    // the background bring small ones, as many as fit and are of use.
    private int FewestStateSlots => BackwardUsesHopper ? 4 : 2;

    private int MostStateSlots => BackwardUsesHopper ? Math.Min(8, 2 * AllValues / HopperSlice) : 2;

    private int StateMinBlocks => Math.Max(Keys, Values) > 32 ? 1 : 2; // more registers for larger states

    /// <summary>The chunk of backward: a state is saved for each.</summary>
    public static int GradientChunk(ElementType element) => element == ElementType.Float32 ? ShortChunk : 64;

    /// <summary>The tile for a call.</summary>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="element">Of q, k, v and o.</param>
    /// <param name="gate">Of g.</param>
    /// <param name="gradients">Whether backward may follow.</param>
    /// <param name="target">The GPU's.</param>
    /// <param name="reason">Why there is none.</param>
    public static GlaChunkTile? Choose(int keySize, int valueSize, ElementType element, ElementType gate, bool gradients,
        CompilerTarget target, out string reason)
    {
        var key = (keySize, valueSize, element, gate, gradients, target);
        if (!s_choices.TryGetValue(key, out var choice))
            choice = s_choices.GetOrAdd(key, Choose(keySize, valueSize, element, gate, gradients, target));
        reason = choice.Item2;
        return choice.Item1;
    }

    /// <param name="vector">VECTOR: elements that are aligned together everywhere; 1, 2, 4 or 8.</param>
    public KernelVariant Forward(int vector)
    {
        int Bytes(int stages) => ForwardBytes(ForwardChunk, stages);
        if (UsesHopper)
        {
            var (loading, carrying) = Values > NarrowValues ? (200, 152) : (0, 0);
            var loaders = Keys > 64 || Values > NarrowValues ? ProducerWarps : 8; // the longer chunks have more to prepare
            return StateVariant("forward", vector, ForwardChunk, MostHopperStages, Bytes, loaders, Values / 16,
                loading, carrying, "HOPPER=1");
        }
        var (producers, consumers) = HasManyWarps ? (80, 176) : (0, 0);
        return StateVariant("forward", vector, ForwardChunk, MostStages, Bytes, ProducerWarps, ConsumerWarps,
            producers, consumers, "HOPPER=0");
    }

    /// <summary>As <see cref="Forward"/>; in clusters, in which two blocks share the preparation of keys.</summary>
    public KernelVariant ForwardClusters(int vector)
    {
        const int Producers = 4; // for half of the keys
        var (producers, consumers) = HasManyWarps ? (120, 192) : (0, 0);
        return StateVariant("forward_cluster", vector, ForwardChunk, MostStages, ClusterBytes, Producers, Values / 16,
            producers, consumers);
    }

    /// <summary>As <see cref="Forward"/>; of the states alone or, <paramref name="backward"/>, of their gradients.</summary>
    public KernelVariant State(int vector, bool backward)
    {
        var (producers, consumers) = HasManyWarps ? (96, 160) : (0, 0);
        return StateVariant("state", vector, Chunk, MostStages, StateBytes, ProducerWarps, ConsumerWarps, producers, consumers,
            $"BACKWARD={(backward ? 1 : 0)}");
    }

    /// <summary>As <see cref="Forward"/>.</summary>
    public KernelVariant Backward(int vector)
    {
        // Sixteen warps on a multiprocessor, of one block or of two.
        var (blocks, warps) = Fits(BackwardBytes(8), blocks: 2) ? (2, 8) : (1, MostWarps);
        var slots = FewestStateSlots;
        while (slots < MostStateSlots && Fits(BackwardBytes(warps, slots + 1), blocks))
            slots++;
        return Variant("backward", vector, 32 * warps, blocks, BackwardBytes(warps, slots), AllValues, $"CHUNK={Chunk}",
            $"BACKWARD_WARPS={warps}", $"STATE_SLOTS={slots}", $"HOPPER={(BackwardUsesHopper ? 1 : 0)}");
    }

    /// <summary>As <see cref="Forward"/>; of the pairs that <see cref="Backward"/> leaves.</summary>
    public KernelVariant BackwardPairs(int vector) =>
        Variant("backward_pairs", vector, 32 * MostWarps, 1, BackwardPairsBytes, AllValues, $"CHUNK={Chunk}");

    /// <summary>
    /// The same, or one with fewer values in a block where whole sequences would keep the GPU busy, but not half of it.
    /// </summary>
    /// <param name="lines">Sequences times heads.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public GlaChunkTile For(long lines, int valueSize, int multiprocessors)
    {
        var blocks = BlockCount(lines, valueSize);
        return GlaSegments.IsBusy(blocks, multiprocessors) && 2 * blocks <= multiprocessors ? Narrow() : this;
    }

    /// <summary>The same with as few values in a block as are worth it.</summary>
    public GlaChunkTile Narrow() => Values > NarrowValues ? this with { Values = NarrowValues } : this;

    /// <summary>Blocks that share the values of a head.</summary>
    /// <param name="valueSize">V.</param>
    public int ValueTiles(int valueSize) => (valueSize + Values - 1) / Values;

    /// <summary>
    /// Whether forward runs in clusters. Where every multiprocessor has work anyway, smaller states gain nothing from them.
    /// </summary>
    /// <param name="valueSize">V.</param>
    public bool UsesClusters(int valueSize) =>
        BackwardUsesHopper && (Keys > 128 || (Keys > 64 && Values == NarrowValues)) && ValueTiles(valueSize) % ClusterSize == 0;

    /// <summary>Blocks of a call without segments.</summary>
    /// <param name="lines">Sequences times heads.</param>
    /// <param name="valueSize">V.</param>
    public long BlockCount(long lines, int valueSize) => lines * ValueTiles(valueSize);

    private int StateBytes(int stages)
    {
        var stage = Chunk * (Element.Bytes() * (Keys + Values) + Gate.Bytes() * Keys);
        var totals = 2 * sizeof(float) * 32 * ProducerWarps;
        return stages * (stage + BarrierBytes) + totals;
    }

    private int BackwardPairsBytes
    {
        get
        {
            var totals = 2 * sizeof(float) * 32 * MostWarps;
            var valuesOrGradients = Chunk * Math.Max(2 * Element.Bytes() * AllValues, sizeof(float) * Keys);
            return Chunk * Element.Bytes() * (3 * Keys + 2 * Chunk) + sizeof(float) * Chunk + totals + valuesOrGradients;
        }
    }

    private static (GlaChunkTile?, string) Choose(
        int keySize, int valueSize, ElementType element, ElementType gate, bool gradients, CompilerTarget target)
    {
        if (keySize > MaxSize || (gradients && valueSize > MaxSize))
            return (null, $"K = {keySize} and V = {valueSize}: the kernels over chunks take K, and with gradients V, up to {MaxSize}.");

        var (keys, ownValues) = (RoundUp(keySize), RoundUp(valueSize));
        // What holds 256 key channels and 128 value channels needs Hopper's unequal shares of registers and operands of one term.
        var cap = keys > 128 && !(target.IsHopper && element != ElementType.Float32) ? NarrowValues : 128;
        var longest = GradientChunk(element);
        // Backward's gradients take the place of as many values, and need their own where these are fewer.
        foreach (var allValues in gradients && ownValues < keys ? [ownValues, keys] : new[] { ownValues })
        {
            var mostValues = Math.Min(Math.Max(ownValues, Math.Min(allValues, NarrowValues)), cap);
            foreach (var chunk in gradients || longest == ShortChunk ? [longest] : new[] { longest, ShortChunk })
                for (var values = mostValues; values >= Math.Min(mostValues, NarrowValues); values /= 2)
                {
                    var tile = new GlaChunkTile(keys, values, allValues, chunk, element, gate, target);
                    if (tile.FitsForward(tile.ForwardChunk)
                        && tile.Fits(tile.StateBytes(FewestStages))
                        && (!gradients || tile.FitsBackward))
                        return (tile, "");
                }
        }
        return (null, $"K = {keySize} and V = {valueSize}{(gradients ? " with gradients" : "")} need more shared memory than the "
            + $"{target.MaxSharedBytes >> 10} KiB of a block of {target}.");
    }

    private static int RoundUp(int size) => s_sizes.FirstOrDefault(tile => tile >= size, s_sizes[^1]);

    // Of chunk_forward.cu, as the others of their sources; these assert it.
    private int ForwardBytes(int chunk, int stages)
    {
        var bytes = Element.Bytes() * chunk;
        var output = Values > Keys ? bytes * Values : 0; // smaller ones take the queries' place
        return stages * (bytes * (2 * Keys + Values + chunk) + Gate.Bytes() * chunk * Keys + output + BarrierBytes);
    }

    // Of chunk_forward_cluster.cu.
    private int ClusterBytes(int stages)
    {
        const int Alignment = 1 << 10;
        var (bytes, keys) = (Element.Bytes() * ForwardChunk, Keys / ClusterSize);
        var half = bytes * (2 * keys + ForwardChunk) + 5 * sizeof(float) * keys + 16; // with factors of the state
        half = (half + Alignment - 1) / Alignment * Alignment;
        return stages * (ClusterSize * half + bytes * Values + Gate.Bytes() * ForwardChunk * keys + BarrierBytes)
            + 2 * bytes * Values; // outputs
    }

    private int BackwardBytes(int warps) => BackwardBytes(warps, FewestStateSlots);

    private int BackwardBytes(int warps, int slots)
    {
        const int SliceBytes = 128; // of a key's values in a state, without Hopper's products
        const int Alignment = 256; // of the gradients
        var bytes = Element.Bytes() * Chunk;
        var slice = BackwardUsesHopper ? Element.Bytes() * HopperSlice : Math.Min(Element.Bytes() * AllValues, SliceBytes);
        var (values, states) = (2 * bytes * AllValues, slots * Keys * slice);
        var gradients = sizeof(float) * Chunk * Keys; // of queries or keys: over values or states, where these are larger
        // Sums over threads lie where A is later; in short chunks they are larger.
        var sums = sizeof(float) * (3 * 32 * warps + (BackwardUsesHopper ? 4 : 2) * Keys);
        return 2 * bytes * Keys + values + states + Math.Max(bytes * Chunk, sums) + bytes * Chunk + Alignment
            + (values < gradients ? gradients : 0) + (states < gradients ? gradients : 0)
            + (BackwardUsesHopper ? slots * sizeof(long) : 0); // barriers
    }

    private bool FitsForward(int chunk) => Fits(ForwardBytes(chunk, FewestStages));

    private bool Fits(int sharedBytes, int blocks = 1) =>
        blocks * (sharedBytes + ReservedBytes) <= Target.MaxSharedBytes + ReservedBytes;

    // With as many chunks on their way as fit, with the blocks that registers leave room for.
    private KernelVariant StateVariant(string pass, int vector, int chunk, int stages, Func<int, int> bytes, int producerWarps,
        int consumerWarps, int producerRegisters, int consumerRegisters, params string[] defines)
    {
        while (stages > FewestStages && !Fits(bytes(stages), StateMinBlocks))
            stages--;
        return Variant(pass, vector, 32 * (producerWarps + consumerWarps), StateMinBlocks, bytes(stages), Values,
            [
                $"CHUNK={chunk}", $"STAGES={stages}", $"PRODUCERS={producerWarps}", $"CONSUMERS={consumerWarps}",
                $"PRODUCER_REGISTERS={producerRegisters}", $"CONSUMER_REGISTERS={consumerRegisters}", .. defines,
            ]);
    }

    private KernelVariant Variant(
        string pass, int vector, int threads, int minBlocks, int sharedBytes, int values, params string[] defines) =>
        new($"Gla/chunk_{pass}.cu", $"gla_chunk_{pass}",
            [
                $"TYPE={Element.Name()}", $"GATE_TYPE={Gate.Name()}", $"KEY_TILE={Keys}", $"VALUE_TILE={values}",
                $"VECTOR={vector}", $"MIN_BLOCKS={minBlocks}", $"SHARED={sharedBytes}", .. defines,
            ],
            threads, sharedBytes);
}
