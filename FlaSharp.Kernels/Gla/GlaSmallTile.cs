using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The constants that Gla/small_*.cu are compiled with.</summary>
/// <param name="Keys">KEY_TILE: K, rounded up.</param>
/// <param name="Values">VALUE_TILE: V, rounded up.</param>
/// <param name="Warps">Backward's WARPS: each has <see cref="BlockTokens"/> tokens at once.</param>
/// <param name="Blocks">BLOCKS: forward's warps have so many times as many, one after the other.</param>
/// <param name="Element">Of q, k, v and o.</param>
/// <param name="Gate">Of g.</param>
internal sealed record GlaSmallTile(int Keys, int Values, int Warps, int Blocks, ElementType Element, ElementType Gate)
{
    /// <summary>Tokens of a warp.</summary>
    public const int BlockTokens = 16;

    /// <summary>The largest K and V.</summary>
    public const int MaxSize = 16;

    private const int FewestChannels = 8;
    private const int FewestWarps = 4;
    private const int MostWarps = 16;
    private const int MostBlocks = 8;
    private const int MostBlocksOfLargeKeys = 4;
    private const int MostSharedBytes = 99 << 10; // that every GPU has

    // A sequence is not cut into segments. Where few blocks have to walk through long ones, that costs more than it saves.
    private const int ShortSequence = 8192;
    private const int FewestOfMultiprocessors = 16;

    /// <summary>Tokens that a thread block of backward works on at once. Forward saves a state for each so many.</summary>
    public int Tokens => BlockTokens * Warps;

    /// <summary>Floats of a saved state.</summary>
    public int StateSize => MaxSize * Keys;

    /// <summary>Forward's WARPS: it waits for memory, which half of the warps keep as busy, and starts them sooner.</summary>
    public int ForwardWarps => Math.Max(Warps / 2, FewestWarps);

    /// <summary>Forward's inputs: dynamic shared memory.</summary>
    public int ForwardBytes =>
        BlockTokens * ForwardWarps * Blocks * ((((2 * Keys) + Values) * Element.Bytes()) + (Keys * Gate.Bytes()));

    // All warps' states and decays.
    private int ForwardStateBytes => ForwardWarps * (StateSize + Keys) * sizeof(float);

    /// <summary>The tile for a call, or null if the kernels over chunks are to take it.</summary>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="element">Of q, k, v and o.</param>
    /// <param name="gate">Of g.</param>
    /// <param name="lines">Sequences times heads.</param>
    /// <param name="length">Of the longest sequence.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static GlaSmallTile? Choose(
        int keySize, int valueSize, ElementType element, ElementType gate, long lines, int length, int multiprocessors)
    {
        if (keySize > MaxSize || valueSize > MaxSize || element == ElementType.Float32
            || (length > ShortSequence && lines * FewestOfMultiprocessors < multiprocessors))
            return null;
        // More blocks than multiprocessors overlap if two of them fit on one; short sequences have no work for many warps.
        var warps = lines > 2L * multiprocessors ? MostWarps / 2 : MostWarps;
        while (warps > FewestWarps && BlockTokens * warps >= 2 * length)
            warps /= 2;
        var keys = RoundUp(keySize);
        var blocks = keys == FewestChannels ? MostBlocks : MostBlocksOfLargeKeys;
        var tile = new GlaSmallTile(keys, RoundUp(valueSize), warps, blocks, element, gate);
        while (tile.Blocks > 1 && BlockTokens * tile.ForwardWarps * tile.Blocks >= 2 * length)
            tile = tile with { Blocks = tile.Blocks / 2 };
        while (tile.ForwardBytes + tile.ForwardStateBytes > MostSharedBytes)
            tile = tile with { Blocks = tile.Blocks / 2 };
        return tile;
    }

    /// <param name="vector">VECTOR: elements that are aligned together everywhere; 1, 2, 4 or 8.</param>
    public KernelVariant Forward(int vector) =>
        Variant("forward", ForwardWarps, vector, ForwardBytes, $"BLOCKS={Blocks}", $"SAVED_EVERY={Tokens}");

    /// <summary>As <see cref="Forward"/>.</summary>
    public KernelVariant Backward(int vector) => Variant("backward", Warps, vector, sharedBytes: 0);

    private static int RoundUp(int size) => size <= FewestChannels ? FewestChannels : MaxSize;

    private KernelVariant Variant(string pass, int warps, int vector, int sharedBytes, params ReadOnlySpan<string> defines) =>
        new($"Gla/small_{pass}.cu", $"gla_small_{pass}",
            [
                $"TYPE={Element.Name()}", $"GATE_TYPE={Gate.Name()}", $"KEY_TILE={Keys}", $"VALUE_TILE={Values}",
                $"WARPS={warps}", $"VECTOR={vector}", .. defines,
            ],
            32 * warps, sharedBytes);
}
