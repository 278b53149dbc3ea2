using FlaSharp.Kernels.Conv;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Conv;

/// <summary>The choice of a tile; what the kernels make of it is tested on the emulator and on GPUs.</summary>
public sealed class CausalConvTileTests
{
    [Theory]
    [InlineData("BFloat16", 4, false, 16, 8)]
    [InlineData("BFloat16", 4, false, 8, 4)]
    [InlineData("BFloat16", 4, false, 4, 1)]
    [InlineData("BFloat16", 4, true, 16, 4)]
    [InlineData("BFloat16", 5, false, 16, 4)]
    [InlineData("BFloat16", 8, true, 8, 4)]
    [InlineData("BFloat16", 9, false, 16, 1)]
    [InlineData("Float32", 4, false, 16, 4)]
    [InlineData("Float32", 4, true, 8, 2)]
    [InlineData("Float32", 32, true, 16, 1)]
    public void A_thread_takes_what_fits_and_is_aligned(string element, int width, bool isBackward, int alignment, int vector)
    {
        var tile = CausalConvTile.Of(Enum.Parse<ElementType>(element), width, isSilu: true, isBackward, alignment);
        Assert.Equal(vector, tile.Vector);
        Assert.Equal(32 * vector, tile.Group);
    }

    [Fact]
    public void Every_width_up_to_8_and_every_vector_is_compiled()
    {
        foreach (var isBackward in new[] { true, false })
        {
            var tiles = CausalConvTile.Representatives(isBackward).ToList();
            Assert.Superset(Enumerable.Range(1, 8).ToHashSet(), tiles.Select(tile => tile.Width).ToHashSet());
            Assert.Superset(new HashSet<int> { 1, 2, 4 }, tiles.Select(tile => tile.Vector).ToHashSet());
        }
    }
}
