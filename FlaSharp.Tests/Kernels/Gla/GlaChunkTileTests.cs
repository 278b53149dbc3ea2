using System.Text.RegularExpressions;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Gla;

/// <summary>That the shared memory is what the kernels compute, they assert where they are compiled.</summary>
public sealed class GlaChunkTileTests
{
    private const ElementType BFloat16 = ElementType.BFloat16;
    private const ElementType Float32 = ElementType.Float32;

    private static readonly (ElementType element, ElementType gate)[] s_types =
        [(BFloat16, BFloat16), (BFloat16, Float32), (Float32, Float32)];

    private static readonly bool[] s_either = [false, true];

    public static TheoryData<string> Targets => ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_80"];

    [Theory]
    [InlineData(1, 1, 16, 16)]
    [InlineData(16, 17, 16, 32)]
    [InlineData(33, 64, 64, 64)]
    [InlineData(100, 128, 128, 128)]
    [InlineData(128, 256, 128, 128)] // in two parts
    [InlineData(7, 500, 16, 128)]
    [InlineData(129, 256, 256, 128)]
    [InlineData(256, 16, 256, 16)]
    public void Sizes_are_rounded_up(int keySize, int valueSize, int keys, int values)
    {
        var tile = GlaChunkTile.Choose(keySize, valueSize, BFloat16, BFloat16, false, CompilerTarget.Sm90a, out var reason);
        Assert.NotNull(tile);
        Assert.Equal((keys, values, ""), (tile.Keys, tile.Values, reason));
    }

    [Theory]
    [InlineData(128, 128, false, "sm_90a", 64)]
    [InlineData(128, 128, true, "sm_90a", 64)]
    [InlineData(256, 256, false, "sm_90a", 64)]
    [InlineData(256, 256, false, "sm_80", 64)]
    [InlineData(256, 256, true, "sm_90a", 64)]
    [InlineData(128, 128, true, "sm_80", 64)]
    [InlineData(128, 128, false, "sm_86", 64)]
    [InlineData(64, 64, true, "sm_86", 64)]
    public void Chunks_are_64_tokens_where_that_fits(int keySize, int valueSize, bool gradients, string target, int chunk) =>
        Assert.Equal(chunk, GlaChunkTile.Choose(keySize, valueSize, BFloat16, BFloat16, gradients, Target(target), out _)!.Chunk);

    [Theory]
    [InlineData(128, 128, false, "sm_90a", 128, 32)]
    [InlineData(128, 128, true, "sm_90a", 128, 32)]
    [InlineData(256, 256, true, "sm_90a", 64, 32)]
    [InlineData(256, 256, false, "sm_80", 64, 16)]
    [InlineData(128, 128, true, "sm_80", 128, 32)]
    [InlineData(128, 128, false, "sm_86", 128, 16)]
    [InlineData(64, 64, true, "sm_86", 64, 32)]
    public void Chunks_of_float32_are_shorter(
        int keySize, int valueSize, bool gradients, string target, int values, int forwardChunk)
    {
        var tile = GlaChunkTile.Choose(keySize, valueSize, Float32, Float32, gradients, Target(target), out _)!;
        Assert.Equal((values, 32, forwardChunk, 2), (tile.Values, tile.Chunk, tile.ForwardChunk, tile.Terms));
    }

    [Theory]
    [InlineData(257, 16, BFloat16, false, "sm_90a", "K = 257")]
    [InlineData(16, 257, BFloat16, true, "sm_90a", "V = 257")]
    [InlineData(257, 16, Float32, false, "sm_90a", "K = 257")]
    [InlineData(128, 128, BFloat16, true, "sm_86", "99 KiB of a block of sm_86")]
    [InlineData(128, 128, Float32, true, "sm_86", "99 KiB of a block of sm_86")]
    [InlineData(200, 128, BFloat16, true, "sm_80", "with gradients need more shared memory")]
    public void What_has_no_tile_is_told_why(
        int keySize, int valueSize, object element, bool gradients, string target, string why)
    {
        var type = (ElementType)element;
        Assert.Null(GlaChunkTile.Choose(keySize, valueSize, type, type, gradients, Target(target), out var reason));
        Assert.Contains(why, reason, StringComparison.Ordinal);
    }

    [Theory]
    [MemberData(nameof(Targets))]
    public void Every_tile_fits_its_gpu(string target)
    {
        int[] sizes = [1, .. GlaChunkTile.Sizes, .. GlaChunkTile.Sizes.Select(size => size + 1)];
        var tiles = from keySize in sizes
                    from valueSize in sizes
                    from types in s_types
                    from gradients in s_either
                    let tile = GlaChunkTile.Choose(
                        keySize, valueSize, types.element, types.gate, gradients, Target(target), out _)
                    where tile is not null
                    select (tile, gradients, keySize, valueSize);
        foreach (var (tile, gradients, keySize, valueSize) in tiles.DistinctBy(found => (found.tile, found.gradients)))
        {
            Assert.True(keySize <= tile.Keys && (!gradients || valueSize <= tile.AllValues), tile.ToString());
            Assert.True(!gradients || tile.Chunk == GlaChunkTile.GradientChunk(tile.Element));
            KernelVariant[] variants = gradients
                ? [tile.Forward(8), tile.State(8, false), tile.State(8, true), tile.Backward(8), tile.BackwardPairs(8)]
                : [tile.Forward(8), tile.State(8, false)];
            foreach (var variant in variants)
                Assert.True(variant.SharedBytes <= Target(target).MaxSharedBytes, variant.ToString());
        }
    }

    [Fact]
    public void Three_chunks_are_on_their_way_where_the_blocks_leave_room()
    {
        // 3 (chunk (4 K + 2 V + 2 K + 2 chunk) + 16), as 3 (32 x (4 x 128 + 2 x 128 + 2 x 128 + 2 x 32) + 16)
        AssertForward(128, 128, "sm_80", stages: 3, minBlocks: 1, sharedBytes: 3 * (34_816 + 16), threads: 256);
        AssertForward(64, 32, "sm_90a", stages: 3, minBlocks: 1, sharedBytes: 3 * (36_864 + 16), threads: 192);
        AssertForward(64, 32, "sm_80", stages: 3, minBlocks: 1, sharedBytes: 3 * (36_864 + 16), threads: 192);
        AssertForward(16, 16, "sm_80", stages: 3, minBlocks: 2, sharedBytes: 3 * (16_384 + 16), threads: 160);
        AssertForward(16, 16, "sm_86", stages: 3, minBlocks: 2, sharedBytes: 3 * (16_384 + 16), threads: 160);

        static void AssertForward(
            int keySize, int valueSize, string target, int stages, int minBlocks, int sharedBytes, int threads)
        {
            var tile = GlaChunkTile.Choose(keySize, valueSize, BFloat16, BFloat16, true, Target(target), out _)!;
            var variant = tile.Forward(8);
            Assert.Equal((stages, minBlocks), (Define(variant, "STAGES"), Define(variant, "MIN_BLOCKS")));
            Assert.Equal((sharedBytes, threads), (variant.SharedBytes, variant.Threads));
            Assert.Equal(sharedBytes, Define(variant, "SHARED"));
        }
    }

    [Theory]
    [InlineData(64, 64, 64, true, 4)]
    [InlineData(64, 128, 128, true, 3)]
    [InlineData(128, 128, 128, true, 4)]
    [InlineData(100, 60, 64, true, 4)]
    [InlineData(256, 64, 64, true, 4)]
    [InlineData(256, 128, 128, false, 3)] // the state fills the registers of twice the warps
    [InlineData(32, 128, 128, false, 3)]
    [InlineData(128, 32, 32, false, 3)]
    public void On_Hopper_forward_takes_products_of_four_warps(
        int keySize, int valueSize, int values, bool usesHopper, int stages)
    {
        var tile = GlaChunkTile.Choose(keySize, valueSize, BFloat16, BFloat16, false, CompilerTarget.Sm90a, out _)!;
        Assert.Equal((values, usesHopper), (tile.Values, tile.UsesHopper));
        var variant = tile.Forward(8);
        Assert.Equal((usesHopper ? 1 : 0, stages), (Define(variant, "HOPPER"), Define(variant, "STAGES")));
        var keys = tile.Keys;
        if (usesHopper)
            Assert.Equal(
                (values / 16, (keys == 64 && values == 64 ? 256 : 128) + 2 * values), (Define(variant, "CONSUMERS"), variant.Threads));

        var portable = tile with { IsPortable = true };
        Assert.False(portable.UsesHopper);
        Assert.Equal(0, Define(portable.Forward(8), "HOPPER"));
        Assert.Equal(tile.State(8, backward: true), portable.State(8, backward: true));
        var elsewhere = GlaChunkTile.Choose(keySize, valueSize, BFloat16, BFloat16, false, CompilerTarget.Sm80, out _)!;
        Assert.False(elsewhere.UsesHopper);
    }

    [Theory]
    [InlineData(64, 64, BFloat16, true, 4)] // all of them
    [InlineData(128, 128, BFloat16, true, 4)]
    [InlineData(256, 256, BFloat16, true, 5)] // whose forward pass does without
    [InlineData(100, 200, BFloat16, true, 8)]
    [InlineData(128, 128, Float32, false, 2)]
    [InlineData(32, 128, BFloat16, false, 2)]
    [InlineData(128, 32, BFloat16, false, 2)]
    public void On_Hopper_backward_takes_products_of_four_warps(
        int keySize, int valueSize, object element, bool usesHopper, int slots)
    {
        var type = (ElementType)element;
        var tile = GlaChunkTile.Choose(keySize, valueSize, type, type, true, CompilerTarget.Sm90a, out _)!;
        var variant = tile.Backward(8);
        Assert.Equal(usesHopper, tile.BackwardUsesHopper);
        Assert.Equal((usesHopper ? 1 : 0, slots), (Define(variant, "HOPPER"), Define(variant, "STATE_SLOTS")));

        var portable = tile with { IsPortable = true };
        Assert.Equal((0, 2), (Define(portable.Backward(8), "HOPPER"), Define(portable.Backward(8), "STATE_SLOTS")));
        Assert.Equal(variant.Threads, portable.Backward(8).Threads);
        Assert.Equal(tile.BackwardPairs(8), portable.BackwardPairs(8));
    }

    [Fact]
    public void Backward_has_all_values_in_one_block()
    {
        var tile = GlaChunkTile.Choose(64, 200, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _)!;
        Assert.Equal((128, 256), (Define(tile.Forward(8), "VALUE_TILE"), Define(tile.Backward(8), "VALUE_TILE")));
        Assert.Equal((256, 8, 2), (tile.Backward(8).Threads, Define(tile.Backward(8), "BACKWARD_WARPS"), MinBlocks(tile)));
        var larger = GlaChunkTile.Choose(256, 200, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _)!;
        Assert.Equal((512, 16, 1), (larger.Backward(8).Threads, Define(larger.Backward(8), "BACKWARD_WARPS"), MinBlocks(larger)));

        static int MinBlocks(GlaChunkTile tile) => Define(tile.Backward(8), "MIN_BLOCKS");
    }

    [Fact]
    public void Backward_of_the_largest_keys_has_as_many_values()
    {
        // Less memory than with fewer values, which leave no room for gradients. States are saved for slices of 64.
        foreach (var (valueSize, values) in new[] { (128, 128), (32, 64) })
        {
            var tile = GlaChunkTile.Choose(256, valueSize, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _)!;
            Assert.Equal((values, 256), (tile.Values, tile.AllValues));
        }
    }

    [Fact]
    public void The_largest_heads_take_more_warps_and_unequal_registers_on_Hopper()
    {
        var tile = GlaChunkTile.Choose(256, 256, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _)!;
        foreach (var variant in new[] { tile.Forward(8), tile.State(8, false), tile.State(8, true) })
        {
            Assert.Equal((8, 8, 512), (Define(variant, "PRODUCERS"), Define(variant, "CONSUMERS"), variant.Threads));
            var registers = 256 * (Define(variant, "PRODUCER_REGISTERS") + Define(variant, "CONSUMER_REGISTERS"));
            Assert.Equal(65_536, registers);
        }
        var portable = GlaChunkTile.Choose(256, 256, BFloat16, BFloat16, false, Target("sm_80"), out _)!.Forward(8);
        Assert.Equal((64, 0, 256), (Define(portable, "VALUE_TILE"), Define(portable, "CONSUMER_REGISTERS"), portable.Threads));
    }

    [Theory]
    [InlineData(64, 128, 132, 64)] // 64 blocks of 128 values: 128 of 64
    [InlineData(66, 128, 132, 64)]
    [InlineData(67, 128, 132, 128)]
    [InlineData(52, 128, 132, 128)] // time is cut instead
    [InlineData(32, 256, 132, 64)] // two blocks for each line
    [InlineData(64, 64, 132, 64)]
    public void Few_blocks_are_made_more_by_narrow_tiles(int lines, int valueSize, int multiprocessors, int values)
    {
        var tile = GlaChunkTile.Choose(128, valueSize, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _)!;
        Assert.Equal(values, tile.For(lines, valueSize, multiprocessors).Values);
    }

    [Theory]
    [InlineData(256, 256, 128, true)]
    [InlineData(200, 150, 128, true)]
    [InlineData(256, 600, 128, false)] // five blocks
    [InlineData(256, 128, 128, false)] // one
    [InlineData(128, 128, 128, false)]
    [InlineData(128, 128, 64, true)] // few lines
    [InlineData(64, 128, 64, false)]
    public void Forward_runs_in_clusters_where_two_blocks_share_large_keys(int keySize, int valueSize, int values, bool clusters)
    {
        var tile = GlaChunkTile.Choose(keySize, valueSize, BFloat16, Float32, false, CompilerTarget.Sm90a, out _)!;
        tile = values < tile.Values ? tile.Narrow() : tile;
        Assert.Equal((values, clusters), (tile.Values, tile.UsesClusters(valueSize)));
        Assert.False((tile with { IsPortable = true }).UsesClusters(valueSize));
        if (clusters)
            Assert.InRange(tile.ForwardClusters(8).SharedBytes, 1, CompilerTarget.Sm90a.MaxSharedBytes);
    }

    [Fact]
    public void A_choice_is_made_once()
    {
        var first = GlaChunkTile.Choose(64, 64, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _);
        Assert.Same(first, GlaChunkTile.Choose(64, 64, BFloat16, BFloat16, true, CompilerTarget.Sm90a, out _));
    }

    private static CompilerTarget Target(string architecture) =>
        CompilerTarget.Binary.Append(CompilerTarget.Ptx80).Single(target => target.Architecture == architecture);

    private static int Define(KernelVariant variant, string name) => variant.Defines
        .Select(define => Regex.Match(define, $"^{name}=(\\d+)$"))
        .Where(match => match.Success)
        .Select(match => int.Parse(match.Groups[1].Value))
        .Single();
}
