using System.Globalization;
using TorchSharp;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Memory that the garbage collector does not see.</summary>
internal static class NativeMemory
{
    /// <summary>Whether <see cref="Mapped"/> can be asked: on Linux.</summary>
    public static bool CanMeasure => File.Exists("/proc/self/statm");

    /// <summary>
    /// Megabytes of address space. Touched or not, each block above 32 MB is mapped when a tensor is made and gone when it is freed.
    /// </summary>
    public static long Mapped() =>
        long.Parse(File.ReadAllText("/proc/self/statm").Split(' ')[0], CultureInfo.InvariantCulture) * Environment.SystemPageSize >> 20;

    /// <summary>Tensors alive after a full collection with all finalizers.</summary>
    public static long LiveTensors()
    {
        for (var i = 0; i < 3; i++) // a finalizer may free the last reference to the next object
        {
            GC.Collect();
            GC.WaitForPendingFinalizers();
        }
        return torch.Tensor.TotalCount;
    }
}
