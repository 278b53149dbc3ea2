using FlaSharp.Kernels.Attention;
using Xunit;

namespace FlaSharp.Tests.Kernels.Attention;

public sealed class AttentionScheduleTests
{
    [Theory]
    [InlineData(2048, 64, 1, 31, 128)]
    [InlineData(2048, 256, 1, 16, 80)]
    [InlineData(1024, 64, 4, 64, 128)]
    [InlineData(1024, 193, 1, 193, 128)]
    [InlineData(16384, 32, 8, 8, 128)]
    public void Blocks_of_threads_end_together(int time, int lines, int group, int limit, int keyRows)
    {
        const int Blocks = 132;
        var question = new AttentionSchedule.Question(time, time, true, 0, lines, group, 128, keyRows, limit, Blocks);

        var schedule = AttentionSchedule.Choose(question);

        Assert.InRange(schedule.Section, (limit + 1) / 2, limit);
        Assert.Equal(0, (limit - schedule.Section) % group);
        var mean = question.Costs().Sum() * (double)lines / Blocks;
        Assert.InRange(schedule.Longest(question), mean, 1.05 * mean);
    }

    [Fact]
    public void Costs_count_the_key_tiles_that_are_seen()
    {
        Assert.Equal([4, 3, 2], new AttentionSchedule.Question(300, 300, true, 0, 1, 1, 128, 128, 1, 1).Costs());
        Assert.Equal([3, 3, 2], new AttentionSchedule.Question(300, 300, true, 100, 1, 1, 128, 128, 1, 1).Costs());
        Assert.Equal([4, 4, 4], new AttentionSchedule.Question(300, 300, false, 0, 1, 1, 128, 128, 1, 1).Costs());
        Assert.Equal([2, 1, 1], new AttentionSchedule.Question(300, 40, true, 0, 1, 1, 128, 128, 1, 1).Costs());
    }
}
