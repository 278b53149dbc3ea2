using System.Numerics;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The constants that Gla/small_forward_cluster.cu is compiled with.</summary>
/// <param name="Tiles">BLOCKS: a warp has so many times <see cref="GlaSmallTile.BlockTokens"/> tokens of <see cref="Heads"/> heads.</param>
/// <param name="Blocks">CLUSTER: together they have a sequence's tokens.</param>
/// <param name="Element">Of q, k, v, g and o.</param>
/// <param name="SavedEvery">SAVED_EVERY: <see cref="GlaSmallTile.Tokens"/>.</param>
internal sealed record GlaSmallCluster(int Tiles, int Blocks, ElementType Element, int SavedEvery)
{
    /// <summary>Of a thread block: 16 bytes of each, which lie side by side in memory where heads do.</summary>
    public const int Heads = 4;

    /// <summary>K and V.</summary>
    public const int Size = 8;

    private const int Warps = 8;
    private const int MostTiles = 2;
    private const int MostBlocks = 8; // that every GPU with clusters has
    private const int TileTokens = GlaSmallTile.BlockTokens * Warps;
    private const int TileBytes = 4 * TileTokens * Heads * Size * sizeof(ushort);

    /// <summary>The cluster for a call, or null if a block is to take a head's whole sequence.</summary>
    /// <param name="tile">Of the call.</param>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="sequences">How many.</param>
    /// <param name="heads">H.</param>
    /// <param name="length">Of the longest sequence.</param>
    /// <param name="vector">Elements that are aligned together everywhere.</param>
    /// <param name="device">The GPU: what it compiles for and its multiprocessors.</param>
    public static GlaSmallCluster? Choose(GlaSmallTile tile, int keySize, int valueSize, int sequences, int heads, int length,
        int vector, (CompilerTarget Target, int Multiprocessors) device)
    {
        if (!device.Target.IsHopper || keySize != Size || valueSize != Size || vector != Size || tile.Gate != tile.Element
            || heads % Heads != 0)
            return null;
        var lines = (long)sequences * heads / Heads;
        var (one, more) = (Blocks(tiles: 1), Blocks(MostTiles));
        // Many blocks have two tiles under way; few had better be more.
        if (one == 1 || (one <= MostBlocks && 2 * lines * one <= device.Multiprocessors))
            return new(1, one, tile.Element, tile.Tokens);
        // A GPU that one wave of clusters fills gets them unevenly spread: single blocks are faster there.
        var fills = more > 1 && 2 * lines * more > device.Multiprocessors && 2 * lines * more < 3L * device.Multiprocessors;
        return more > MostBlocks || fills ? null : new(MostTiles, more, tile.Element, tile.Tokens);

        int Blocks(int tiles) => (int)BitOperations.RoundUpToPowerOf2((uint)(Math.Max(length - 1, 0) / (TileTokens * tiles)) + 1);
    }

    public KernelVariant Forward() => new("Gla/small_forward_cluster.cu", "gla_small_forward_cluster",
        [
            $"TYPE={Element.Name()}", $"GATE_TYPE={Element.Name()}", $"WARPS={Warps}", $"BLOCKS={Tiles}", $"CLUSTER={Blocks}",
            $"SAVED_EVERY={SavedEvery}",
        ],
        32 * Warps, Tiles * TileBytes);
}
