using System.Numerics;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>The constants that Attention/*_forward.cu are compiled with.</summary>
/// <param name="Keys">KEY_TILE: K, rounded up.</param>
/// <param name="Values">VALUE_TILE: V, rounded up.</param>
/// <param name="Element">Of q, k, v and o.</param>
/// <param name="HasOptions">OPTIONS: see <see cref="AttentionProblem.HasOptions"/>.</param>
/// <param name="UsesHopper">Whether it is Hopper's kernel.</param>
internal sealed record AttentionTile(int Keys, int Values, ElementType Element, bool HasOptions, bool UsesHopper)
{
    /// <summary>The largest K and V.</summary>
    public const int MaxSize = 256;

    private const int SmallestTile = 32;
    private const int ElementBytes = 2;
    private const int PortableWarps = 4;
    private const int GroupRows = 64; // of queries, for each group of four warps
    private const int WarpRows = 16;

    /// <summary>Whether there are so many queries that larger blocks of them are worth their rest; only for some tiles.</summary>
    public bool IsLong { get; private init; }

    /// <summary>Blocks of Hopper's kernel that a multiprocessor runs at once.</summary>
    public int HopperBlocks => !IsSmall ? 1 : Largest > SmallestTile ? 3 : 4;

    /// <summary>
    /// Whether a block of Hopper's kernel goes on with further queries, whose copies begin before it ends, or has one tile of them.
    /// </summary>
    public bool IsPersistent => !IsSmall || Largest > SmallestTile;

    /// <summary>Queries of a block.</summary>
    public int QueryRows => UsesHopper ? GroupRows * Groups : WarpRows * PortableWarps;

    /// <summary>KEY_ROWS: keys that it works on together, as many as the output leaves registers for their scores.</summary>
    public int KeyRows => (UsesHopper, Largest <= 128, HasOptions) switch
    {
        (true, true, _) => IsSmall ? 64 : 128,
        (true, false, false) => Keys == Values ? 80 : 64,
        (true, false, true) => 32,
        (false, true, _) => 64,
        (false, false, _) => 32,
    };

    // Of heads this small the softmax takes longest: many little blocks, which wait for different things, keep it going.
    private bool IsSmall => UsesHopper && !HasOptions && Largest <= 64 && !IsLong;

    private int Largest => Math.Max(Keys, Values);

    // Of four warps, for the products: as many as have the registers for the scores.
    private int Groups => IsSmall ? 1 : IsLong ? 3 : 2;

    // Tiles of keys and of values in shared memory, and of Hopper's queries. Where there is room the next block's wait there when
    // this one ends: with few keys each, blocks would spend much of their time waiting.
    private int Stages => UsesHopper && HasOptions && Largest <= 64 ? 4 : 2;

    private int QueryStages => UsesHopper && Largest <= 128 ? 2 : 1;

    // Groups take turns with their products; with outputs as large as these their own softmax hides behind them.
    private bool TakesTurns => Values <= 128 && !IsSmall;

    /// <summary>The tile for a call.</summary>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="element">Of q, k, v and o.</param>
    /// <param name="hasOptions">See <see cref="AttentionProblem.HasOptions"/>.</param>
    /// <param name="usesHopper">Whether it is for Hopper's kernel.</param>
    /// <param name="isLong">See <see cref="IsLong"/>.</param>
    public static AttentionTile Choose(
        int keySize, int valueSize, ElementType element, bool hasOptions, bool usesHopper, bool isLong = false)
    {
        var (keys, values) = (RoundUp(keySize), RoundUp(valueSize));
        return new(keys, values, element, hasOptions, usesHopper)
        {
            IsLong = isLong && usesHopper && !hasOptions && Math.Max(keys, values) == 64,
        };
    }

    /// <param name="vector">VECTOR: elements that are aligned together everywhere; 1, 2, 4 or 8. Hopper's kernel needs 8.</param>
    public KernelVariant Forward(int vector) => UsesHopper ? Hopper() : Portable(vector);

    private static int RoundUp(int size) => Math.Max(SmallestTile, (int)BitOperations.RoundUpToPowerOf2((uint)size));

    private KernelVariant Hopper()
    {
        const int BarriersOfQueries = 2, BarriersOfStage = 4, WarpgroupThreads = 128;
        const int PlaceBytes = 96 + sizeof(long); // where a tile of queries lies, fla::AttentionTile, and a barrier
        var bytes = TileBytes + (PlaceBytes * (QueryStages + 1))
            + (((BarriersOfQueries * QueryStages) + (BarriersOfStage * Stages)) * sizeof(long));
        // The registers that the block is launched with, most of them for those who compute: 4 x 32 + 8 x 232 of 12 x 168,
        // 4 x 32 + 12 x 160 = 16 x 128, 4 x 32 + 4 x 128 = 8 x 80, and 4 x 32 + 4 x 96 = 8 x 64.
        const int Producers = 32;
        var consumers = IsLong ? 160 : !IsSmall ? 232 : Largest > SmallestTile ? 128 : 96;
        return Variant("hopper", WarpgroupThreads * (Groups + 1), bytes, $"GROUPS={Groups}", $"STAGES={Stages}",
            $"QUERY_STAGES={QueryStages}", $"PRODUCER_REGISTERS={Producers}", $"CONSUMER_REGISTERS={consumers}",
            $"PINGPONG={(TakesTurns ? 1 : 0)}", $"VALUES_FIRST={(IsSmall ? 1 : 0)}", $"MIN_BLOCKS={HopperBlocks}");
    }

    private KernelVariant Portable(int vector) =>
        Variant("portable", 32 * PortableWarps, TileBytes, $"WARPS={PortableWarps}", $"VECTOR={vector}");

    private int TileBytes => ElementBytes * ((QueryStages * QueryRows * Keys) + (Stages * KeyRows * (Keys + Values)));

    private KernelVariant Variant(string kernel, int threads, int sharedBytes, params ReadOnlySpan<string> others) =>
        new($"Attention/{kernel}_forward.cu", "attention_forward",
            [
                $"TYPE={Element.Name()}", $"KEY_TILE={Keys}", $"VALUE_TILE={Values}", $"KEY_ROWS={KeyRows}",
                $"OPTIONS={(HasOptions ? 1 : 0)}", $"SHARED={sharedBytes}", .. others,
            ],
            threads, sharedBytes);
}
