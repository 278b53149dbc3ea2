using System.Runtime.ExceptionServices;
using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Cpu;

/// <summary>
/// The OpenMP threads of the host library (libtorch), through GNU's <c>GOMP_parallel</c>. They spin for a while after each of
/// libtorch's operations, so a kernel between two of them that brought threads of its own would have to share the cores with them.
/// </summary>
internal static unsafe class OpenMpThreads
{
    // void GOMP_parallel(void (*function)(void*), void* data, unsigned threads /* 0: the host's setting */, unsigned flags)
    private static delegate* unmanaged<delegate* unmanaged<nint, void>, nint, uint, uint, void> s_parallel;

    public static bool AreKnown => s_parallel is not null;

    /// <param name="gompParallel">The address of <c>GOMP_parallel</c> in the runtime that the host library uses.</param>
    public static void Use(nint gompParallel) =>
        s_parallel = (delegate* unmanaged<delegate* unmanaged<nint, void>, nint, uint, uint, void>)gompParallel;

    /// <summary>Calls <paramref name="body"/> for 0 to <paramref name="count"/> - 1, in any order, on all threads.</summary>
    public static void For(int count, Action<int> body)
    {
        var loop = new Loop(count, body);
        var handle = GCHandle.Alloc(loop);
        try
        {
            s_parallel(&RunOnThread, GCHandle.ToIntPtr(handle), 0, 0);
        }
        finally
        {
            handle.Free();
        }
        loop.ThrowIfFailed();
    }

    [UnmanagedCallersOnly]
    private static void RunOnThread(nint handle) => ((Loop)GCHandle.FromIntPtr(handle).Target!).Run();

    /// <summary>One loop; each thread takes the next index until none is left.</summary>
    private sealed class Loop(int count, Action<int> body)
    {
        private int _taken;
        private ExceptionDispatchInfo? _failure;

        public void Run()
        {
            try
            {
                for (var i = Interlocked.Increment(ref _taken); i <= count; i = Interlocked.Increment(ref _taken))
                    body(i - 1);
            }
            catch (Exception exception) // must not reach the native frames of the thread
            {
                Interlocked.CompareExchange(ref _failure, ExceptionDispatchInfo.Capture(exception), null);
                Volatile.Write(ref _taken, count);
            }
        }

        public void ThrowIfFailed() => _failure?.Throw();
    }
}
