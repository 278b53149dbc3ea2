using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// A GPU with its primary context, the one that libtorch, and every other user of CUDA's runtime, works in. It is held to the
/// process's end.
/// </summary>
internal sealed class GpuDevice
{
    private static readonly ConcurrentDictionary<int, Lazy<GpuDevice>> s_devices = new();

    private readonly nint _context;

    private GpuDevice(int ordinal)
    {
        CudaException.ThrowIfFailed(CudaDriver.cuInit(0));
        CudaException.ThrowIfFailed(CudaDriver.cuDeviceGet(out var device, ordinal), $"cuDeviceGet, device {ordinal}");
        Ordinal = ordinal;
        Info = Ask(device);
        CudaException.ThrowIfFailed(CudaDriver.cuDevicePrimaryCtxRetain(out _context, device));
    }

    /// <summary>As CUDA_VISIBLE_DEVICES counts, and so TorchSharp's device index.</summary>
    public int Ordinal { get; }

    public GpuInfo Info { get; }

    /// <summary>What kernels for this GPU are compiled for; null if it is too old.</summary>
    public CompilerTarget? Target => CompilerTarget.For(Info.Major, Info.Minor);

    /// <summary>The device, made once.</summary>
    /// <exception cref="DllNotFoundException">There is no CUDA driver.</exception>
    /// <exception cref="CudaException">There is no such device, or it cannot be used.</exception>
    public static GpuDevice Get(int ordinal) =>
        s_devices.TryGetValue(ordinal, out var device) ? device.Value : Add(ordinal);

    /// <summary>The number of GPUs.</summary>
    /// <exception cref="DllNotFoundException">There is no CUDA driver.</exception>
    /// <exception cref="CudaException">The driver cannot be used.</exception>
    public static int Count()
    {
        CudaException.ThrowIfFailed(CudaDriver.cuInit(0));
        CudaException.ThrowIfFailed(CudaDriver.cuDeviceGetCount(out var count));
        return count;
    }

    /// <summary>
    /// Makes this device the calling thread's current one until the result is disposed, on the same thread. Free where it is
    /// current already; the one before comes back, since libtorch makes new tensors on the current device.
    /// </summary>
    public ContextScope MakeCurrent() => new(_context);

    /// <summary>Free and total bytes of the memory.</summary>
    public (long free, long total) Memory()
    {
        using var current = MakeCurrent();
        CudaException.ThrowIfFailed(CudaDriver.cuMemGetInfo(out var free, out var total));
        return ((long)free, (long)total);
    }

    /// <summary>Waits for all work on this device.</summary>
    /// <exception cref="CudaException">Some of it failed.</exception>
    public void Synchronize()
    {
        using var current = MakeCurrent();
        CudaException.ThrowIfFailed(CudaDriver.cuCtxSynchronize());
    }

    public override string ToString() => $"cuda:{Ordinal} ({Info})";

    private static GpuDevice Add(int ordinal) =>
        // A failure is not kept: the next call may find a free GPU.
        s_devices.GetOrAdd(ordinal, static ordinal =>
            new Lazy<GpuDevice>(() => new GpuDevice(ordinal), LazyThreadSafetyMode.PublicationOnly)).Value;

    private static unsafe GpuInfo Ask(int device)
    {
        const int Length = 256;
        var name = stackalloc byte[Length];
        CudaException.ThrowIfFailed(CudaDriver.cuDeviceGetName(name, Length, device));
        CudaException.ThrowIfFailed(CudaDriver.cuDeviceTotalMem(out var bytes, device));
        CudaException.ThrowIfFailed(CudaDriver.cuDriverGetVersion(out var version));
        return new GpuInfo
        {
            Name = Marshal.PtrToStringUTF8((nint)name)!,
            Major = Attribute(DeviceAttribute.ComputeCapabilityMajor),
            Minor = Attribute(DeviceAttribute.ComputeCapabilityMinor),
            MultiprocessorCount = Attribute(DeviceAttribute.MultiprocessorCount),
            MaxSharedBytesPerBlock = Attribute(DeviceAttribute.MaxSharedMemoryPerBlockOptin),
            SharedBytesPerMultiprocessor = Attribute(DeviceAttribute.MaxSharedMemoryPerMultiprocessor),
            L2Bytes = Attribute(DeviceAttribute.L2CacheSize),
            MemoryBytes = (long)bytes,
            MemoryClockKHz = Attribute(DeviceAttribute.MemoryClockRate),
            MemoryBusBits = Attribute(DeviceAttribute.GlobalMemoryBusWidth),
            DriverVersion = new Version(version / 1000, version % 1000 / 10),
        };

        int Attribute(DeviceAttribute attribute)
        {
            CudaException.ThrowIfFailed(CudaDriver.cuDeviceGetAttribute(out var value, attribute, device), attribute.ToString());
            return value;
        }
    }
}
