using System.Runtime.CompilerServices;
using FlaSharp.Interop;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Tests run with NaN in the memory for results and for kernels' working data: what nobody wrote is seen.</summary>
internal static class PoisonedMemory
{
    [ModuleInitializer]
    internal static void Poison() => Scratch.IsPoisoned = CpuScratch.IsPoisoned = true;
}
