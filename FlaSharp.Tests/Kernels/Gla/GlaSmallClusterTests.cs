using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Gla;

/// <summary>The choice of a cluster; what the kernel makes of it is tested on the emulator and on GPUs.</summary>
public sealed class GlaSmallClusterTests
{
    private const int Multiprocessors = 132;

    [Theory]
    [InlineData(64, 0, 8, 1, 1)]
    [InlineData(64, 128, 8, 1, 1)]
    [InlineData(64, 129, 8, 2, 1)]
    [InlineData(64, 257, 8, 2, 2)]
    [InlineData(64, 1024, 8, 2, 4)]
    [InlineData(64, 1025, 8, 2, 8)]
    [InlineData(64, 2048, 8, 2, 8)]
    [InlineData(1, 129, 8, 1, 2)]
    [InlineData(1, 1024, 8, 1, 8)]
    [InlineData(1, 1025, 8, 2, 8)]
    [InlineData(8, 1024, 8, 2, 4)]
    [InlineData(12, 1024, 8, 2, 4)]
    [InlineData(13, 1024, 11, 2, 3)] // one wave
    [InlineData(19, 1024, 11, 2, 3)]
    [InlineData(19, 513, 11, 2, 3)]
    [InlineData(19, 512, 8, 2, 2)]
    [InlineData(19, 1057, 8, 2, 8)]
    [InlineData(20, 1024, 8, 2, 4)]
    public void Blocks_of_a_cluster_have_all_tokens(int sequences, int length, int warps, int tiles, int blocks)
    {
        var cluster = Choose(sequences, length)!;
        Assert.Equal((warps, tiles, blocks), (cluster.Warps, cluster.Tiles, cluster.Blocks));
        Assert.True(16 * warps * tiles * blocks >= length);
        Assert.Contains($"CLUSTER={blocks}", cluster.Forward().Defines);
        Assert.Contains(cluster.Forward() with { Defines = [] }, Catalog(CompilerTarget.Sm90a));
    }

    [Theory]
    [InlineData(16, 1024, true)] // three blocks each
    [InlineData(8, 1024, true)]
    [InlineData(64, 1024, false)]
    [InlineData(2, 1024, false)] // eight
    [InlineData(16, 256, true)]
    [InlineData(128, 256, true)]
    [InlineData(133, 256, false)]
    public void The_copy_engine_brings_tokens_of_few_blocks(int sequences, int length, bool boxes)
    {
        Assert.Equal(boxes, Choose(sequences, length)!.Boxes);
        Assert.False(Choose(sequences, length, boxes: false)!.Boxes);
    }

    [Fact]
    public void Others_are_left_to_single_blocks()
    {
        Assert.Null(Choose(length: 2049));
        Assert.Null(Choose(keySize: 7));
        Assert.Null(Choose(valueSize: 16));
        Assert.Null(Choose(heads: 6));
        Assert.Null(Choose(vector: 4));
        Assert.Null(Choose(gate: ElementType.Float32));
        Assert.Null(Choose(target: CompilerTarget.Sm80));
        Assert.DoesNotContain(Choose()!.Forward() with { Defines = [] }, Catalog(CompilerTarget.Sm89));
    }

    private static IEnumerable<KernelVariant> Catalog(CompilerTarget target) =>
        KernelCatalog.AllVariants(target).Select(variant => variant with { Defines = [] });

    private static GlaSmallCluster? Choose(int sequences = 64, int length = 1024, int keySize = 8, int valueSize = 8,
        int heads = 8, int vector = 8, bool boxes = true, ElementType gate = ElementType.BFloat16, CompilerTarget? target = null)
    {
        var tile = GlaSmallTile.Choose(
            keySize, valueSize, ElementType.BFloat16, gate, (long)sequences * heads, length, Multiprocessors)!;
        var device = (target ?? CompilerTarget.Sm90a, Multiprocessors);
        return GlaSmallCluster.Choose(tile, keySize, valueSize, sequences, heads, length, vector, boxes, device);
    }
}
