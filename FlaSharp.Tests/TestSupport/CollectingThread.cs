namespace FlaSharp.Tests.TestSupport;

/// <summary>Collects garbage without pause, so that a tensor which only native code still uses is lost at once.</summary>
internal sealed class CollectingThread : IDisposable
{
    private readonly Thread _thread;
    private volatile bool _stopped;

    public CollectingThread()
    {
        _thread = new Thread(Collect) { IsBackground = true, Name = "collector" };
        _thread.Start();
    }

    public int Collections { get; private set; }

    public void Dispose()
    {
        _stopped = true;
        _thread.Join();
    }

    private void Collect()
    {
        for (; !_stopped; Collections++)
        {
            GC.Collect(Collections % 500 == 0 ? GC.MaxGeneration : 0);
            Thread.Yield(); // with few cores the other threads would starve
        }
    }
}
