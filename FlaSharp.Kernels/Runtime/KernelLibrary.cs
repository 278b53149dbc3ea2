using System.Collections.Concurrent;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The loaded kernels of the process: each is compiled and loaded once for each device, by the first who asks.</summary>
internal sealed class KernelLibrary(KernelCompiler compiler)
{
    private static readonly KernelLibrary s_default = new(KernelCompiler.Default);

    private readonly ConcurrentDictionary<(GpuDevice, KernelVariant), Lazy<CudaKernel>> _kernels = new();

    /// <summary>The kernel, of the sources of this assembly. Waits for no lock once it is loaded.</summary>
    /// <exception cref="Interop.NvrtcException">It does not compile.</exception>
    /// <exception cref="Interop.CudaException">The driver does not take it.</exception>
    /// <exception cref="NotSupportedException">The device is too old for it, or has too little shared memory.</exception>
    public static CudaKernel Get(GpuDevice device, KernelVariant variant) => s_default.Kernel(device, variant);

    /// <summary>As <see cref="Get"/>, of this library's compiler.</summary>
    public CudaKernel Kernel(GpuDevice device, KernelVariant variant)
    {
        if (_kernels.TryGetValue((device, variant), out var known) && known.IsValueCreated)
            return known.Value;
        var kernel = _kernels.GetOrAdd((device, variant), static (key, library) =>
            new Lazy<CudaKernel>(() => library.Load(key.Item1, key.Item2)), this);
        try
        {
            return kernel.Value;
        }
        catch
        {
            _kernels.TryRemove(new((device, variant), kernel)); // a failure is not kept: memory may be free the next time
            throw;
        }
    }

    private CudaKernel Load(GpuDevice device, KernelVariant variant)
    {
        var target = device.Target ?? throw new NotSupportedException(CudaRuntime.TooOld(device.Info));
        return CudaKernel.Load(device, variant, compiler.Compile(variant, target));
    }
}
