using FlaSharp.Kernels.Norm;
using Xunit;

namespace FlaSharp.Tests.Kernels.Norm;

/// <summary>The choice of a tile; what the kernels make of it is tested on the emulator and on GPUs.</summary>
public sealed class RmsNormTileTests
{
    [Theory]
    [InlineData(true)]
    [InlineData(false)]
    public void Every_size_has_a_tile(bool isAligned)
    {
        for (var size = 1; size <= RmsNormTile.MaxSize; size++)
        {
            var tile = RmsNormTile.Of(size, isAligned);
            Assert.Equal(isAligned, tile.IsAligned);
            Assert.InRange(size, 1, tile.Lanes * tile.PerThread);
        }
    }

    [Theory]
    [InlineData(64, 8)]
    [InlineData(128, 16)]
    [InlineData(256, 32)]
    [InlineData(1024, 32)]
    [InlineData(1032, 128)]
    [InlineData(8192, 512)]
    [InlineData(12288, 512)]
    [InlineData(16384, 1024)]
    public void A_line_has_a_warp_up_to_1024_and_a_block_above(int size, int lanes) =>
        Assert.Equal(lanes, RmsNormTile.Of(size, isAligned: true).Lanes);

    [Fact]
    public void Lanes_are_part_of_a_warp_or_all_of_a_block() =>
        Assert.All(RmsNormTile.All, tile =>
            Assert.True(32 % tile.Lanes == 0 ? tile.Threads % 32 == 0 : tile.Lanes == tile.Threads));
}
