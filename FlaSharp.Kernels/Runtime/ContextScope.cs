using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>A context that is the thread's current one until this is disposed: <see cref="GpuDevice.MakeCurrent"/>.</summary>
internal readonly ref struct ContextScope
{
    private readonly bool _pushed;

    public ContextScope(nint context)
    {
        CudaException.ThrowIfFailed(CudaDriver.cuCtxGetCurrent(out var current));
        if (current == context)
            return;
        CudaException.ThrowIfFailed(CudaDriver.cuCtxPushCurrent(context));
        _pushed = true;
    }

    public void Dispose()
    {
        if (_pushed)
            CudaException.ThrowIfFailed(CudaDriver.cuCtxPopCurrent(out _));
    }
}
