using FlaSharp.Kernels.SelectiveScan;
using Xunit;

namespace FlaSharp.Tests.Kernels.SelectiveScan;

public sealed class SelectiveScanSegmentsTests
{
    [Theory]
    [InlineData(128, 8192, 1)] // busy
    [InlineData(88, 8192, 1)] // two thirds of 132
    [InlineData(87, 8192, 3)]
    [InlineData(64, 65536, 4)]
    [InlineData(1, 1_000_000, 264)]
    [InlineData(1, 1024, 4)] // 256 steps in each
    [InlineData(1, 511, 1)]
    [InlineData(1, 0, 1)]
    [InlineData(0, 0, 1)]
    public void Forward_a_sequence_is_cut_where_whole_ones_leave_a_gpu_idle(long blocks, int length, int segments) =>
        IsCut(SelectiveScanSegments.Forward(blocks, length, 132), length, segments);

    [Theory]
    [InlineData(384, 2048, 1)]
    [InlineData(198, 4096, 1)] // three for two multiprocessors
    [InlineData(197, 4096, 2)]
    [InlineData(128, 8192, 3)]
    [InlineData(64, 65536, 6)]
    [InlineData(1, 300, 1)]
    public void Backward_also_where_multiprocessors_have_a_single_block(long blocks, int length, int segments) =>
        IsCut(SelectiveScanSegments.Backward(blocks, length, 132), length, segments);

    [Theory]
    [InlineData(3, 320, 3, 128)]
    [InlineData(4, 9 * 32, 3, 96)] // three of three tiles: a fourth would be empty
    [InlineData(20, 33, 2, 32)]
    [InlineData(1, 33, 1, 64)]
    [InlineData(5, 0, 1, 32)]
    public void Segments_are_whole_tiles_of_equal_number(int wanted, int length, int count, int steps) =>
        Assert.Equal(new SelectiveScanSegments(count, steps), SelectiveScanSegments.Of(wanted, length));

    private static void IsCut(SelectiveScanSegments cut, int length, int segments)
    {
        Assert.Equal(segments, cut.Count);
        Assert.Equal(0, cut.Steps % SelectiveScanTile.Steps);
        Assert.True((long)cut.Count * cut.Steps >= length, cut.ToString());
        Assert.True(length == 0 || (cut.Count - 1) * cut.Steps < length, $"{cut}: the last one is empty.");
    }
}
