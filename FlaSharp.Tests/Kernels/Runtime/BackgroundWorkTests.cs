using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class BackgroundWorkTests
{
    [Fact]
    public void The_end_waits_for_what_has_begun()
    {
        var work = new BackgroundWork();
        using var begun = new ManualResetEventSlim();
        using var goOn = new ManualResetEventSlim();
        var isDone = false;
        work.Begin(() =>
        {
            begun.Set();
            goOn.Wait();
            isDone = true;
        });
        begun.Wait(TestContext.Current.CancellationToken);
        var end = new Thread(work.End);
        end.Start();
        Assert.False(end.Join(50));
        goOn.Set();
        Assert.True(end.Join(TimeSpan.FromSeconds(30)));
        Assert.True(isDone);
    }

    [Fact]
    public void After_the_end_nothing_begins_and_a_failure_is_not_thrown()
    {
        var work = new BackgroundWork();
        work.Begin(() => throw new InvalidOperationException());
        work.End();
        var hasRun = false;
        work.Begin(() => hasRun = true);
        work.End();
        Assert.False(hasRun);
    }
}
