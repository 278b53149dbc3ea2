namespace FlaSharp.Tests.TestSupport;

/// <summary>Collects garbage all the time, so that a tensor which only native code still uses is lost at once.</summary>
internal sealed class CollectingThread : IDisposable
{
    private const int CollectionsPerStep = 3; // without a limit they can take nearly all time on a machine with few cores

    private readonly Thread _thread;
    private volatile bool _stopped;
    private volatile int _steps;

    public CollectingThread()
    {
        _thread = new Thread(Collect) { IsBackground = true, Name = "collector" };
        _thread.Start();
    }

    public int Collections { get; private set; }

    /// <summary>Tells that the code under test has made another step.</summary>
    public void NextStep() => _steps++;

    public void Dispose()
    {
        _stopped = true;
        _thread.Join();
    }

    private void Collect()
    {
        for (; !_stopped; Collections++)
        {
            while (Collections > (_steps + 1) * CollectionsPerStep && !_stopped)
                Thread.Yield();
            GC.Collect(Collections % 500 == 499 ? GC.MaxGeneration : 0);
        }
    }
}
