using System.Collections.Concurrent;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// Kernels of backward that are loaded while forward runs, the first time that a backward is to follow: compiling them one after the
/// other would be the longest part of a first step. A failure shows when they are launched.
/// </summary>
/// <typeparam name="TCall">What tells calls with unlike kernels apart.</typeparam>
/// <param name="variants">The kernels of a call.</param>
internal sealed class ExpectedKernels<TCall>(Func<TCall, KernelVariant[]> variants)
{
    private readonly ConcurrentDictionary<(GpuDevice, TCall), bool> _begun = new();

    public void Begin(GpuDevice device, TCall call)
    {
        if (!_begun.TryAdd((device, call), true))
            return;
        foreach (var variant in variants(call))
            BackgroundWork.OfProcess.Begin(() => KernelLibrary.Get(device, variant));
    }
}
