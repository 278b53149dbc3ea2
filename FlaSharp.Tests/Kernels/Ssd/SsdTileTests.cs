using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;
using Xunit;

namespace FlaSharp.Tests.Kernels.Ssd;

/// <summary>That the shared memory is what the kernels compute, they assert where they are compiled.</summary>
public sealed class SsdTileTests
{
    public static TheoryData<string> Targets => ["sm_80", "sm_86", "sm_89", "sm_90a", "compute_80"];

    [Theory]
    [InlineData(1, 1, 16, 16)]
    [InlineData(17, 33, 64, 32)]
    [InlineData(64, 128, 128, 64)]
    [InlineData(500, 128, 128, 128)] // in parts
    [InlineData(256, 256, 256, 64)]
    public void Sizes_are_rounded_up(int headSize, int stateSize, int keys, int values)
    {
        var tile = SsdTile.Choose(headSize, stateSize, ElementType.BFloat16, CompilerTarget.Sm90a, out var reason);
        Assert.NotNull(tile);
        Assert.Equal((keys, values, ""), (tile.Keys, tile.Values, reason));
    }

    [Theory]
    [MemberData(nameof(Targets))]
    public void Every_size_has_a_tile_on_every_gpu(string architecture)
    {
        var target = CompilerTarget.Binary.Append(CompilerTarget.Ptx80).Single(target => target.Architecture == architecture);
        foreach (var headSize in SsdTile.Sizes)
            foreach (var stateSize in SsdTile.Sizes)
            {
                var tile = SsdTile.Choose(headSize, stateSize, ElementType.Float16, target, out var reason);
                Assert.True(tile is not null, reason);
                Assert.Equal(0, tile.Keys % tile.SliceKeys);
                Assert.Equal(0, tile.Values % tile.SliceValues);
                foreach (var variant in new[] { tile.Scan(8, false, false), tile.Scan(1, true, true), tile.Backward(8) })
                    Assert.InRange(variant.SharedBytes, 1, target.MaxSharedBytes);
            }
    }

    [Theory]
    [InlineData(ElementType.Float32, 16, "bfloat16 and float16")]
    [InlineData(ElementType.BFloat16, 257, "N = 257")]
    public void What_has_no_tile_is_told_why(object element, int stateSize, string why)
    {
        Assert.Null(SsdTile.Choose(64, stateSize, (ElementType)element, CompilerTarget.Sm90a, out var reason));
        Assert.Contains(why, reason, StringComparison.Ordinal);
    }
}
