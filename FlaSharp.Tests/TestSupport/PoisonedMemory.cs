using System.Runtime.CompilerServices;
using FlaSharp.Interop;
using FlaSharp.Kernels.Cpu;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Every test runs with memory full of NaN where results and kernels' working data go: what nobody wrote is seen.</summary>
internal static class PoisonedMemory
{
    [ModuleInitializer]
    internal static void Poison() => Scratch.IsPoisoned = CpuScratch.IsPoisoned = true;
}
