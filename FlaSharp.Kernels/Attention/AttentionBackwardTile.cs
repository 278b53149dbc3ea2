using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>The constants that the backward kernels in Attention/ are compiled with.</summary>
/// <param name="Keys">KEY_TILE: K, rounded up.</param>
/// <param name="Values">VALUE_TILE: V, rounded up.</param>
/// <param name="KeyRows">KEYS_TILE: keys of a block.</param>
/// <param name="QueryRows">QUERY_TILE: queries that it visits together.</param>
/// <param name="Stages">Tiles of queries in shared memory.</param>
/// <param name="Element">Of q, k, v and o.</param>
/// <param name="HasOptions">Whether scores are more than products, or weights are dropped.</param>
/// <param name="UsesHopper">Whether it is the kernel for Hopper.</param>
internal sealed record AttentionBackwardTile(
    int Keys, int Values, int KeyRows, int QueryRows, int Stages, ElementType Element, bool HasOptions, bool UsesHopper)
{
    /// <summary>Queries whose sums lie together in memory: fla::QUERY_BLOCK.</summary>
    public const int QueryBlock = 128;

    /// <summary>The fewest queries of a tile, divided by <see cref="SumParts"/>.</summary>
    public const int FewestQueryRows = 32;

    private const int HopperThreads = 384;
    private const int HelperThreads = 256;
    private const int BarrierBytes = sizeof(long);
    private static readonly int[] s_sizes = [16, 32, 64, 128, 256];

    /// <summary>BLOCK_WARPS of the kernel for any GPU.</summary>
    public int Warps { get; init; } = 8;

    /// <summary>Into how many parts of a tile of queries sums are added, each in turns.</summary>
    public int SumParts => UsesHopper ? 2 : 1;

    /// <summary>SUM_SLOTS: how many times a part may lie in shared memory.</summary>
    public int SumSlots { get; init; }

    private int RowBytes => Element.Bytes() * (Keys + Values);

    private bool IsWide => UsesHopper && Math.Max(Keys, Values) > 128;

    /// <summary>SUM_COLUMNS: those of the queries' gradient whose sums lie together.</summary>
    private int SumColumns => IsWide ? 64 : UsesHopper && QueryRows < QueryBlock ? Keys / 2 : Keys;

    private int SumBytes => SumParts * SumSlots * sizeof(float) * 64 * SumColumns;

    // Of hopper_wide_backward.cu, as the others of their sources; these assert it.
    private int WideBytes =>
        KeyRows * RowBytes + Element.Bytes() * QueryRows * (2 * Keys + Values) + 3 * Element.Bytes() * KeyRows * QueryRows
        + SumBytes + 3 * sizeof(float) * QueryRows + (13 + 4 * SumSlots) * BarrierBytes;

    private int HopperBytes =>
        KeyRows * RowBytes + Stages * QueryRows * (RowBytes + 2 * sizeof(float)) + 3 * Element.Bytes() * KeyRows * QueryRows
        + SumBytes + (2 * Stages + 1 + 4 * SumSlots) * BarrierBytes;

    private int PortableBytes =>
        KeyRows * RowBytes + 2 * Element.Bytes() * KeyRows * QueryRows + Stages * QueryRows * (RowBytes + 2 * sizeof(float));

    /// <summary>K in the sums of queries' gradients, of whichever kernel needs more.</summary>
    /// <param name="keySize">K.</param>
    public static int MostKeys(int keySize) => Math.Max(128, RoundUp(keySize));

    /// <summary>Whether kernels for Hopper take such heads. With options, large ones have no registers left.</summary>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="hasOptions">See <see cref="HasOptions"/>.</param>
    public static bool FitsHopper(int keySize, int valueSize, bool hasOptions) =>
        !hasOptions || Math.Max(keySize, valueSize) <= 64;

    /// <summary>The tile of a kernel for Hopper.</summary>
    public static AttentionBackwardTile Hopper(int keySize, int valueSize, ElementType element, bool hasOptions)
    {
        var largest = RoundUp(Math.Max(keySize, valueSize));
        var (smallest, keyRows, queryRows, stages, slots) = largest switch
        {
            > 128 => (128, 64, 64, 2, 1),
            > 64 => (64, 128, 64, 2, 1),
            > 32 => (64, 128, 64, 4, 2),
            _ => hasOptions ? (64, 128, 64, 4, 2) : (32, 128, 128, 2, 2),
        };
        return new(Math.Max(smallest, RoundUp(keySize)), Math.Max(smallest, RoundUp(valueSize)), keyRows, queryRows, stages,
            element, hasOptions, true)
        {
            SumSlots = slots,
        };
    }

    /// <summary>The tile of the kernel for any GPU: the largest one that fits.</summary>
    public static AttentionBackwardTile Portable(
        int keySize, int valueSize, ElementType element, bool hasOptions, int vector, CompilerTarget target)
    {
        const int WholeCopies = 8;
        var (keys, values) = (RoundUp(keySize), RoundUp(valueSize));
        (int keyRows, int queryRows, int warps)[] tiles = Math.Max(keys, values) <= 128 ? [(64, 64, 8)]
            : hasOptions || vector < WholeCopies ? [(64, 32, 8), (32, 32, 8)] // sixteen warps leave too few registers
            : [(64, 64, 16), (32, 32, 8)];
        return tiles
            .Select(rows => new AttentionBackwardTile(keys, values, rows.keyRows, rows.queryRows, 1, element, hasOptions, false)
            {
                Warps = rows.warps,
            })
            .First(tile => tile.PortableBytes <= target.MaxSharedBytes);
    }

    /// <summary>The gradients of keys and values, and the sums of the queries'.</summary>
    /// <param name="vector">VECTOR: elements that are aligned together everywhere; 1, 2, 4 or 8.</param>
    public KernelVariant Main(int vector)
    {
        string[] tile = [$"TYPE={Element.Name()}", $"KEY_TILE={Keys}", $"VALUE_TILE={Values}"];
        string[] defines = [.. tile, $"QUERY_TILE={QueryRows}", $"STAGES={Stages}", $"OPTIONS={(HasOptions ? 1 : 0)}"];
        return IsWide
            ? new("Attention/hopper_wide_backward.cu", "attention_hopper_backward", [.. tile, $"SHARED={WideBytes}"],
                HopperThreads, WideBytes)
            : UsesHopper
            ? new("Attention/hopper_backward.cu", "attention_hopper_backward",
                [.. defines, $"SUM_SLOTS={SumSlots}", $"SHARED={HopperBytes}"], HopperThreads, HopperBytes)
            : new("Attention/portable_backward.cu", "attention_portable_backward",
                [
                    .. defines, $"KEYS_TILE={KeyRows}", $"VECTOR={vector}", $"BLOCK_WARPS={Warps}", "MIN_BLOCKS=1",
                    $"SHARED={PortableBytes}",
                ],
                32 * Warps, PortableBytes);
    }

    /// <summary>As <see cref="Main"/>; before it.</summary>
    public KernelVariant Delta(int vector) => Helper("delta", $"VALUE_TILE={Values}", $"VECTOR={vector}");

    /// <summary>As <see cref="Main"/>; after it.</summary>
    public KernelVariant Queries(int vector) =>
        Helper("queries", $"KEY_TILE={Keys}", $"SUM_COLUMNS={SumColumns}", $"QUERY_TILE={QueryRows}", $"KEYS_TILE={KeyRows}",
            $"VECTOR={vector}");

    /// <summary>Sums the sinks' gradients.</summary>
    public static KernelVariant Sinks() =>
        new("Attention/backward_sinks.cu", "attention_backward_sinks", [], HelperThreads, 0);

    private static int RoundUp(int size) => s_sizes.First(tile => tile >= size);

    private KernelVariant Helper(string name, params string[] defines) =>
        new($"Attention/backward_{name}.cu", $"attention_backward_{name}", [$"TYPE={Element.Name()}", .. defines],
            HelperThreads, 0);
}
