using System.Numerics;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The constants that Gla/small_forward_cluster.cu is compiled with.</summary>
/// <param name="Warps">WARPS.</param>
/// <param name="Tiles">
/// BLOCKS: a warp has so many times <see cref="GlaSmallTile.BlockTokens"/> tokens of <see cref="Heads"/> heads.
/// </param>
/// <param name="Blocks">CLUSTER: together they have a sequence's tokens.</param>
/// <param name="Boxes">BOXES: Hopper's copy engine brings the tokens.</param>
/// <param name="Element">Of q, k, v, g and o.</param>
/// <param name="SavedEvery">SAVED_EVERY: <see cref="GlaSmallTile.Tokens"/>.</param>
internal sealed record GlaSmallCluster(int Warps, int Tiles, int Blocks, bool Boxes, ElementType Element, int SavedEvery)
{
    /// <summary>Of a thread block: 16 bytes of each, which lie side by side in memory where heads do.</summary>
    public const int Heads = 4;

    /// <summary>K and V.</summary>
    public const int Size = 8;

    private const int FewWarps = 8;   // two blocks fit on a multiprocessor
    private const int ManyWarps = 11; // one does
    private const int MostTiles = 2;
    private const int MostBlocks = 8; // that every GPU with clusters has
    private const int WarpBytes = 4 * GlaSmallTile.BlockTokens * Heads * Size * sizeof(ushort);

    /// <summary>The cluster for a call, or null if a block is to take a head's whole sequence.</summary>
    /// <param name="tile">Of the call.</param>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="sequences">How many.</param>
    /// <param name="heads">H.</param>
    /// <param name="length">Of the longest sequence.</param>
    /// <param name="vector">Elements that are aligned together everywhere.</param>
    /// <param name="boxes">Whether Hopper's copy engine can bring the tokens.</param>
    /// <param name="device">The GPU: what it compiles for and its multiprocessors.</param>
    public static GlaSmallCluster? Choose(GlaSmallTile tile, int keySize, int valueSize, int sequences, int heads, int length,
        int vector, bool boxes, (CompilerTarget Target, int Multiprocessors) device)
    {
        if (!device.Target.IsHopper || keySize != Size || valueSize != Size || vector != Size || tile.Gate != tile.Element
            || heads % Heads != 0)
            return null;
        var lines = (long)sequences * heads / Heads;
        // Few blocks had better be more, many have two tiles under way each.
        var single = Cluster(FewWarps, 1);
        if (single.Blocks == 1 || (single.Blocks <= MostBlocks && 2 * lines * single.Blocks <= device.Multiprocessors))
            return With(single);
        var cluster = Cluster(FewWarps, MostTiles);
        // One wave of these would have two blocks on each of half of the multiprocessors. A GPU rarely has room for as many
        // clusters of four with a multiprocessor for each block, but it has for those of three.
        var three = new GlaSmallCluster(ManyWarps, MostTiles, 3, false, tile.Element, tile.Tokens);
        if (cluster.Blocks > three.Blocks && length <= three.Tokens && 4 * lines * cluster.Blocks > 3L * device.Multiprocessors
            && 8 * lines * three.Blocks <= 7L * device.Multiprocessors)
            return With(three);
        return cluster.Blocks <= MostBlocks ? With(cluster) : null;

        // Boxes begin sooner, which counts where no other block is under way meanwhile. Measured on an H200.
        GlaSmallCluster With(GlaSmallCluster cluster) => cluster with
        {
            Boxes = boxes && cluster.Blocks < MostBlocks
                && lines * cluster.Blocks <= (cluster.Blocks == 1 ? 2L : 1L) * device.Multiprocessors,
        };

        GlaSmallCluster Cluster(int warps, int tiles)
        {
            var one = new GlaSmallCluster(warps, tiles, 1, false, tile.Element, tile.Tokens);
            return one with { Blocks = (int)BitOperations.RoundUpToPowerOf2((uint)(Math.Max(length - 1, 0) / one.Tokens) + 1) };
        }
    }

    private int Tokens => GlaSmallTile.BlockTokens * Warps * Tiles * Blocks;

    public KernelVariant Forward() => new("Gla/small_forward_cluster.cu", "gla_small_forward_cluster",
        [
            $"TYPE={Element.Name()}", $"GATE_TYPE={Element.Name()}", $"WARPS={Warps}", $"BLOCKS={Tiles}", $"CLUSTER={Blocks}",
            $"BOXES={(Boxes ? 1 : 0)}", $"SAVED_EVERY={SavedEvery}",
        ],
        32 * Warps, Warps * Tiles * WarpBytes);
}
