using System.Runtime.ExceptionServices;

namespace FlaSharp.Autograd;

/// <summary>
/// The first exception of a backward pass, kept because it cannot cross the native autograd engine. The engine runs the nodes of
/// a GPU on a thread of its own, so the place is shared by all threads.
/// </summary>
internal static class BackwardFailure
{
    private static ExceptionDispatchInfo? s_failure;

    public static void Set(Exception exception) =>
        Interlocked.CompareExchange(ref s_failure, ExceptionDispatchInfo.Capture(exception), null);

    /// <summary>Throws the exception once, with the stack of the place it came from.</summary>
    public static void ThrowIfAny()
    {
        if (Volatile.Read(ref s_failure) is not null)
            Interlocked.Exchange(ref s_failure, null)?.Throw();
    }
}
