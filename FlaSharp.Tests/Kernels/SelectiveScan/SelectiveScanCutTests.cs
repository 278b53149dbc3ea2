using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.SelectiveScan;
using Xunit;

namespace FlaSharp.Tests.Kernels.SelectiveScan;

public sealed class SelectiveScanCutTests
{
    [Theory]
    [InlineData(6336, 1, 1, 8192, false, 1)]
    [InlineData(4096, 1, 1, 8192, false, 1)] // 128 blocks for 132 multiprocessors
    [InlineData(2976, 1, 1, 8192, false, 1)] // 93 blocks
    [InlineData(2944, 1, 1, 8192, false, 8)] // 92 would leave a third of them idle
    [InlineData(2048, 1, 1, 65536, true, 1)] // 128: one for each
    [InlineData(1392, 1, 1, 8192, false, 18)]
    [InlineData(64, 1, 1, 200_000, false, 391)]
    [InlineData(64, 1, 8, 2048, true, 8)] // 256 steps in each
    [InlineData(8, 8, 4, 1000, true, 3)] // each group has its own blocks
    [InlineData(16, 1, 1, 511, true, 1)]
    [InlineData(16, 1, 1, 0, true, 1)]
    public void Forward_blocks_are_narrow_or_time_is_cut(
        long channels, long groups, long sequences, int length, bool isNarrow, int segments)
    {
        var cut = SelectiveScanCut.Forward(channels, groups, sequences, length, 132);
        Assert.Equal(isNarrow, cut.IsNarrow);
        Covers(cut, segments, length);
    }

    [Theory]
    [InlineData(1536, 8, 2048, 1, 1)] // 384 blocks, and room for 528
    [InlineData(8448, 1, 4096, 2, 4)]
    [InlineData(2048, 4, 4096, 2, 4)]
    [InlineData(4096, 1, 8192, 4, 4)]
    [InlineData(2048, 1, 65536, 8, 4)]
    [InlineData(2048, 1, 1500, 5, 2)]
    [InlineData(32, 1, 512, 2, 2)]
    [InlineData(32, 1, 300, 1, 1)]
    public void Backward_time_is_cut_into_as_many_blocks_as_there_is_room_for(
        long channels, long sequences, int length, int segments, int parts)
    {
        var cut = SelectiveScanCut.Backward(channels, 1, sequences, length, 132, ElementType.BFloat16);
        Assert.False(cut.IsNarrow);
        Assert.Equal(parts, cut.Parts);
        Covers(cut, segments, length);
    }

    [Theory]
    [InlineData(3, 320, 3, 128)]
    [InlineData(4, 9 * 32, 3, 96)] // three of three: a fourth would be empty
    [InlineData(20, 33, 2, 32)]
    [InlineData(1, 33, 1, 64)]
    [InlineData(5, 0, 1, 32)]
    [InlineData(3, 320, 3, 128, 2)]
    [InlineData(3, 320, 3, 128, 4)]
    public void Segments_are_equal(int wanted, int length, int count, int steps, int parts = 1) =>
        Assert.Equal(new SelectiveScanCut(true, count, steps, parts), SelectiveScanCut.Of(true, wanted, length, parts));

    [Fact]
    public void A_single_segment_has_no_parts() =>
        Assert.Equal(new SelectiveScanCut(true, 1, 96), SelectiveScanCut.Of(true, 2, 1, 3));

    private static void Covers(SelectiveScanCut cut, int segments, int length)
    {
        Assert.Equal(segments, cut.Segments);
        Assert.Equal(0, cut.Steps % (cut.Parts * SelectiveScanTile.SavedSteps));
        Assert.True((long)cut.Segments * cut.Steps >= length, cut.ToString());
        Assert.True(length == 0 || (cut.Segments - 1) * cut.Steps < length, $"{cut}: the last one is empty.");
    }
}
