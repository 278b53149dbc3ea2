using FlaSharp.Kernels.Runtime;
using LanguageModel.Commands;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>The device that is measured.</summary>
internal sealed class Target
{
    private const long CpuCacheBytes = 32 << 20; // .NET does not tell; enough for most

    private Target(Device device, GpuDevice? gpu)
    {
        (Device, Gpu) = (device, gpu);
        CacheBytes = gpu?.Info.L2Bytes ?? CpuCacheBytes;
        FreeBytes = gpu?.Memory().free ?? GC.GetGCMemoryInfo().TotalAvailableMemoryBytes;
    }

    public Device Device { get; }

    /// <summary>Null on the CPU.</summary>
    public GpuDevice? Gpu { get; }

    /// <summary>Of the last cache before the memory.</summary>
    public long CacheBytes { get; }

    /// <summary>Of the memory, before this program took any: TorchSharp keeps what it has once taken, for itself.</summary>
    public long FreeBytes { get; }

    /// <exception cref="LanguageModel.UserError">There is no such device here.</exception>
    public static Target Choose(string? name)
    {
        Device device = Devices.Choose(name);
        InitializeDeviceType(device.type);
        return new Target(device, device.type == DeviceType.CUDA ? GpuDevice.Get(Math.Max(device.index, 0)) : null);
    }

    public ILaps NewLaps() => Gpu is null ? new CpuLaps() : new GpuLaps(Gpu);

    /// <summary>Waits for the device.</summary>
    public void Synchronize() => Gpu?.Synchronize();
}
