using FlaSharp.Kernels.Gla;
using Xunit;

namespace FlaSharp.Tests.Kernels.Gla;

public sealed class GlaSegmentsTests
{
    [Theory]
    [InlineData(132, 1000, 1)] // busy
    [InlineData(96, 1000, 1)]
    [InlineData(53, 1000, 1)] // 0.4 of 132
    [InlineData(52, 1000, 2)]
    [InlineData(32, 256, 4)]
    [InlineData(1, 10000, 132)]
    [InlineData(1, 80, 10)] // 8 chunks in each
    [InlineData(1, 15, 1)]
    [InlineData(1, 16, 2)]
    [InlineData(1, 0, 1)]
    [InlineData(0, 0, 1)]
    public void A_sequence_is_cut_where_whole_ones_leave_a_gpu_idle(long blocks, int chunks, int segments)
    {
        var cut = GlaSegments.For(blocks, chunks, 132);
        Assert.Equal(segments, cut.Count);
        Covers(cut, chunks);
    }

    [Theory]
    [InlineData(3, 10, 3, 4)]
    [InlineData(4, 9, 3, 3)] // three of three: a fourth would be empty
    [InlineData(9, 9, 9, 1)]
    [InlineData(20, 9, 9, 1)]
    [InlineData(1, 9, 1, 9)]
    [InlineData(5, 0, 1, 1)]
    [InlineData(int.MaxValue, 0, 1, 1)]
    public void Segments_have_equal_lengths(int wanted, int chunks, int count, int length)
    {
        var cut = GlaSegments.Of(wanted, chunks);
        Assert.Equal(new GlaSegments(count, length), cut);
        Covers(cut, chunks);
    }

    private static void Covers(GlaSegments cut, int chunks)
    {
        Assert.True(cut.Count * cut.Chunks >= chunks, cut.ToString());
        Assert.True(chunks == 0 || (cut.Count - 1) * cut.Chunks < chunks, $"{cut}: the last one is empty.");
    }
}
