using FlaSharp.Interop;
using FlaSharp.Kernels.Cpu;
using TorchSharp;
using Xunit;

namespace FlaSharp.Tests.Kernels;

public sealed class CpuParallelTests
{
    public CpuParallelTests() => TensorPointer.Of(torch.zeros(1)); // as every kernel does first: finds libtorch's threads

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(1000)]
    public void Every_index_is_taken_once(int count)
    {
        var taken = new int[count];
        CpuParallel.For(count, i => Interlocked.Increment(ref taken[i]));
        Assert.All(taken, times => Assert.Equal(1, times));

        var inRanges = new int[count];
        CpuParallel.ForRanges(count, (first, end) =>
        {
            for (var i = first; i < end; i++)
                Interlocked.Increment(ref inRanges[i]);
        });
        Assert.All(inRanges, times => Assert.Equal(1, times));
    }

    [Fact]
    public void It_runs_on_the_threads_of_libtorch_where_they_are_GNU_OpenMPs() =>
        Assert.Equal(OperatingSystem.IsLinux(), OpenMpThreads.AreKnown);

    [Fact]
    public void An_exception_reaches_the_caller()
    {
        var thrown = Assert.ThrowsAny<Exception>(() => CpuParallel.For(100, i =>
        {
            if (i == 37)
                throw new InvalidOperationException("planned");
        }));
        Assert.Equal("planned", (thrown as AggregateException)?.InnerException?.Message ?? thrown.Message);
    }

    [Fact]
    public void Loops_of_several_threads_do_not_disturb_each_other()
    {
        var sums = new long[4];
        var threads = Enumerable.Range(0, sums.Length).Select(t => new Thread(() =>
        {
            for (var repeat = 0; repeat < 200; repeat++)
                CpuParallel.For(50, i => Interlocked.Add(ref sums[t], i));
        })).ToList();
        threads.ForEach(thread => thread.Start());
        threads.ForEach(thread => thread.Join());
        Assert.All(sums, sum => Assert.Equal(200 * 49 * 50 / 2, sum));
    }
}
