using System.Collections.Concurrent;
using System.Runtime.ExceptionServices;

namespace FlaSharp.Tests.TestSupport;

/// <summary>A plain thread that lives on and runs what it is given, as the autograd engine's thread of a GPU does.</summary>
internal sealed class Worker : IDisposable
{
    private readonly BlockingCollection<Action> _actions = [];
    private readonly SemaphoreSlim _done = new(0);
    private readonly Thread _thread;
    private Exception? _failure;

    public Worker()
    {
        _thread = new Thread(Work) { IsBackground = true, Name = "worker" };
        _thread.Start();
    }

    /// <summary>Runs the action on the thread, waits for it, and throws what it threw.</summary>
    public void Run(Action action)
    {
        _actions.Add(action);
        _done.Wait();
        if (Interlocked.Exchange(ref _failure, null) is { } failure)
            ExceptionDispatchInfo.Throw(failure);
    }

    public void Dispose()
    {
        _actions.CompleteAdding();
        _thread.Join();
        _actions.Dispose();
        _done.Dispose();
    }

    private void Work()
    {
        foreach (var action in _actions.GetConsumingEnumerable())
        {
            try
            {
                action();
            }
            catch (Exception exception)
            {
                _failure = exception;
            }
            _done.Release();
        }
    }
}
