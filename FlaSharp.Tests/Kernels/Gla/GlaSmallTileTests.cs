using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Gla;

/// <summary>The choice of a tile; what the kernels make of it is tested on the emulator and on GPUs.</summary>
public sealed class GlaSmallTileTests
{
    private const int Multiprocessors = 132;

    [Theory]
    [InlineData(1, 1, 8, 8)]
    [InlineData(8, 9, 8, 16)]
    [InlineData(15, 8, 16, 8)]
    [InlineData(16, 16, 16, 16)]
    public void Sizes_are_rounded_up(int keySize, int valueSize, int keys, int values)
    {
        var tile = Choose(keySize, valueSize)!;
        Assert.Equal((keys, values), (tile.Keys, tile.Values));
        Assert.Equal(16 * keys, tile.StateSize);
    }

    [Theory]
    [InlineData(8, 8, 1024, 8)]
    [InlineData(8, 8, 512, 4)]
    [InlineData(8, 8, 256, 2)]
    [InlineData(16, 8, 1024, 4)]
    [InlineData(16, 16, 1024, 4)]
    public void Warps_of_forward_take_as_many_blocks_as_there_are_up_to_a_limit(int keySize, int valueSize, int length, int blocks)
    {
        var tile = Choose(keySize, valueSize, length: length)!;
        Assert.Equal((16, 8, blocks), (tile.Warps, tile.ForwardWarps, tile.Blocks));
        Assert.Contains($"BLOCKS={blocks}", tile.Forward(4).Defines);
        Assert.Contains("SAVED_EVERY=256", tile.Forward(4).Defines);
    }

    [Fact]
    public void Inputs_under_way_fit_on_every_GPU()
    {
        Assert.Equal(4, Wide(8)!.Blocks);
        Assert.Equal(4, Wide(16)!.Blocks);

        static GlaSmallTile? Wide(int keySize) => GlaSmallTile.Choose(
            keySize, 16, ElementType.BFloat16, ElementType.Float32, 128, 1024, Multiprocessors);
    }

    [Theory]
    [InlineData(128, 1024, 16)]
    [InlineData(1024, 1024, 8)] // two blocks on a multiprocessor
    [InlineData(128, 100, 8)]
    [InlineData(128, 64, 4)]
    [InlineData(128, 1, 4)]
    public void Warps_have_tokens_to_work_on(int lines, int length, int warps)
    {
        var tile = Choose(16, 16, lines, length)!;
        Assert.Equal(warps, tile.Warps);
        Assert.Equal(16 * warps, tile.Tokens);
        Assert.Equal(32 * warps, tile.Backward(4).Threads);
        Assert.Equal(32 * Math.Max(warps / 2, 4), tile.Forward(4).Threads);
    }

    [Fact]
    public void Others_are_left_to_the_kernels_over_chunks()
    {
        Assert.Null(Choose(17, 16));
        Assert.Null(Choose(16, 17));
        Assert.Null(GlaSmallTile.Choose(16, 16, ElementType.Float32, ElementType.Float32, 128, 1024, Multiprocessors));
        Assert.Null(Choose(16, 16, lines: 8, length: 8193)); // time has to be cut
        Assert.NotNull(Choose(16, 16, lines: 8, length: 8192));
        Assert.NotNull(Choose(16, 16, lines: 9, length: 100_000));
    }

    [Fact]
    public void Every_pass_and_tile_is_in_the_catalog()
    {
        var variants = KernelCatalog.AllVariants(CompilerTarget.Sm80).ToHashSet();
        foreach (var (keys, values) in new[] { (8, 8), (8, 16), (16, 8), (16, 16) })
        {
            var tile = Choose(keys, values)!;
            Assert.Contains(tile.Forward(8), variants);
            Assert.Contains(tile.Backward(8), variants);
        }
    }

    private static GlaSmallTile? Choose(int keySize, int valueSize, int lines = 128, int length = 1024) => GlaSmallTile.Choose(
        keySize, valueSize, ElementType.BFloat16, ElementType.BFloat16, lines, length, Multiprocessors);
}
