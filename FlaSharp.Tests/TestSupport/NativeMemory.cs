using System.Runtime.InteropServices;
using TorchSharp;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Memory that the garbage collector does not see.</summary>
internal static class NativeMemory
{
    private static readonly unsafe delegate* unmanaged<MallocInfo> s_mallocInfo =
        NativeLibrary.TryLoad("libc.so.6", out var libc) && NativeLibrary.TryGetExport(libc, "mallinfo2", out var function)
            ? (delegate* unmanaged<MallocInfo>)function
            : null;

    /// <summary>Whether <see cref="Megabytes"/> can be asked: where the C library is glibc 2.33 or later.</summary>
    public static unsafe bool CanMeasure => s_mallocInfo is not null;

    /// <summary>Megabytes that native code holds, tensors on the CPU among them.</summary>
    public static unsafe long Megabytes()
    {
        var info = s_mallocInfo();
        return (long)(info.BytesInMaps + info.BytesInUse) >> 20;
    }

    /// <summary>
    /// Tensors alive after a full collection with all finalizers. Those that earlier tests left on other threads may die between two
    /// calls: a test asks that there be no more than before.
    /// </summary>
    public static long LiveTensors()
    {
        for (var i = 0; i < 3; i++) // a finalizer may free the last reference to the next object
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
        return torch.Tensor.TotalCount;
    }

    /// <summary>The C library's struct mallinfo2.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct MallocInfo
    {
        public nuint Arena, FreeChunks, FastChunks, Maps, BytesInMaps, Unused, BytesInFastChunks, BytesInUse, BytesFree, BytesAtTop;
    }
}
