using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>A mark in a stream, for timing.</summary>
internal sealed class CudaEvent : IDisposable
{
    private readonly GpuDevice _device;
    private nint _handle;

    public CudaEvent(GpuDevice device)
    {
        _device = device;
        using var current = device.MakeCurrent();
        CudaException.ThrowIfFailed(CudaDriver.cuEventCreate(out _handle, 0));
    }

    /// <summary>Sets the mark after all work that is in the stream now.</summary>
    public void Record(nint stream)
    {
        using var current = _device.MakeCurrent();
        CudaException.ThrowIfFailed(CudaDriver.cuEventRecord(_handle, stream));
    }

    /// <summary>Waits until the mark is reached.</summary>
    public void Synchronize() => CudaException.ThrowIfFailed(CudaDriver.cuEventSynchronize(_handle));

    /// <summary>Milliseconds from another mark to this one; both have been reached.</summary>
    public float MillisecondsSince(CudaEvent start)
    {
        CudaException.ThrowIfFailed(CudaDriver.cuEventElapsedTime(out var milliseconds, start._handle, _handle));
        return milliseconds;
    }

    public void Dispose()
    {
        if (_handle != 0)
            _ = CudaDriver.cuEventDestroy(_handle);
        _handle = 0;
    }
}
