using System.Collections.Concurrent;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// Work on other threads that may be given up, such as loading a kernel before it is needed. A process that ends waits for what has
/// begun: the compiler must not be at work while the libraries that it uses are torn down.
/// </summary>
internal sealed class BackgroundWork
{
    private readonly ConcurrentBag<Task> _begun = []; // few: each kernel is expected once
    private volatile bool _ends;

    static BackgroundWork() => AppDomain.CurrentDomain.ProcessExit += static (_, _) => OfProcess.End();

    public static BackgroundWork OfProcess { get; } = new();

    /// <summary>Begins it on another thread. Whether it fails is not told.</summary>
    public void Begin(Action work) => _begun.Add(Task.Run(() =>
    {
        if (!_ends)
            work();
    }));

    /// <summary>Waits for what has begun; what has not will not.</summary>
    public void End()
    {
        _ends = true;
        foreach (var task in _begun)
            ((IAsyncResult)task).AsyncWaitHandle.WaitOne(); // unlike Wait, does not throw what it threw
    }
}
