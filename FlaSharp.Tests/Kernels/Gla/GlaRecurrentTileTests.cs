using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Gla;

/// <summary>The choice of a cut; what the kernels make of it is tested on the emulator and on GPUs.</summary>
public sealed class GlaRecurrentTileTests
{
    private const int Multiprocessors = 132;

    [Fact]
    public void Every_size_has_a_tile_of_fewest_rows()
    {
        for (var size = 1; size <= GlaRecurrentTile.MaxSize; size++)
        {
            var rows = GlaRecurrentTile.Of(size, size, 1, Multiprocessors).Rows;
            Assert.True(rows >= size && (rows == 16 || rows / 2 < size), $"{rows} rows for {size}");
        }
    }

    [Theory]
    [InlineData(64, 128, 128, 64)]   // 4 sequences, 16 heads: 128 blocks
    [InlineData(64, 64, 64, 32)]     // 8 sequences, 8 heads: 64 wide blocks would leave half of the GPU idle
    [InlineData(1024, 128, 128, 64)] // decoding
    [InlineData(1024, 128, 8, 16)]   // a wide block would be mostly empty
    public void Wide_blocks_where_they_are_enough(int lines, int summed, int columns, int expected) =>
        Assert.Equal(expected, GlaRecurrentTile.Of(summed, columns, lines, Multiprocessors).Columns);

    [Fact]
    public void Every_variant_fits_into_shared_memory()
    {
        foreach (var target in CompilerTarget.Binary)
            Assert.All(GlaRecurrentKernels.Variants(target), variant => Assert.InRange(variant.SharedBytes, 1, target.MaxSharedBytes));
    }

    [Fact]
    public void Both_backward_passes_have_the_same_tiles()
    {
        foreach (var target in CompilerTarget.Binary)
            foreach (var tile in GlaRecurrentTile.All)
            {
                var (query, key) = (Steps(late: false), Steps(late: true));
                Assert.Equal(query, key);

                string Steps(bool late) => tile.Backward(ElementType.Float32, ElementType.Float32, late, 128, target)
                    .Defines.Single(define => define.StartsWith("STEPS=", StringComparison.Ordinal));
            }
    }
}
