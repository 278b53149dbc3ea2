using System.Reflection;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp;

/// <summary>Says what FlaSharp finds on this machine, and so which kernels run: look here first where it is slow.</summary>
public static class Doctor
{
    /// <summary>The report as text.</summary>
    /// <param name="device">The device whose operations it lists; if absent the GPU that TorchSharp can use, or the CPU.</param>
    public static string Report(Device? device = null) => Examine(device).ToString();

    /// <summary>The report.</summary>
    /// <param name="device">As in <see cref="Report"/>.</param>
    public static DoctorReport Examine(Device? device = null)
    {
        InitializeDeviceType(DeviceType.CPU); // loads libtorch, beside which NVRTC is looked for first
        device ??= cuda.is_available() ? CUDA : CPU;
        var (gpus, driver) = Gpus();
        return new DoctorReport
        {
            FlaSharp = VersionOf(typeof(Doctor)),
            Gpus = gpus,
            Driver = driver,
            TorchSharp = VersionOf(typeof(torch)),
            Libtorch = $"{LoadedTorch.Version?.ToString() ?? "older than 2.9"}, {LoadedTorch.Folder}, "
                + (cuda.is_available() ? $"{cuda.device_count()} GPUs" : "no GPU that it can use"),
            Nvrtc = NvrtcLibrary.TryLoad(out var problem)?.Describe() ?? problem,
            Cache = Cache(CubinCache.Default),
            Strict = CudaKernels.Strict,
            Device = device.ToString(),
            Operations = OperationPaths.On(device),
        };
    }

    private static (IReadOnlyList<string> gpus, string driver) Gpus()
    {
        try
        {
            var devices = Enumerable.Range(0, GpuDevice.Count()).Select(GpuDevice.Get).ToList();
            return devices.Count == 0
                ? (["none"], "a driver without a GPU")
                : ([.. devices.Select(Describe)], $"for CUDA {devices[0].Info.DriverVersion}");
        }
        catch (Exception e) when (e is DllNotFoundException or EntryPointNotFoundException or CudaException)
        {
            return (["none"], e.Message);
        }
    }

    private static string Describe(GpuDevice gpu) => CudaRuntime.IsAvailable(gpu.Ordinal, out var reason)
        ? $"{gpu}: kernels for {gpu.Target}"
        : $"{gpu}: no kernels, {reason}";

    private static string Cache(CubinCache cache)
    {
        if (cache.Folder is null)
            return $"off ({CubinCache.SwitchVariable}=0, or no folder of the user is known)";
        var (files, bytes) = cache.Size();
        return $"{cache.Folder}, {files} kernels, {bytes / 1e6:F1} MB of at most {CubinCache.DefaultMaxBytes / 1e6:F0} MB"
            + (cache.Problem is { } problem ? $"; not written to: {problem}" : "");
    }

    private static string VersionOf(Type type) =>
        type.Assembly.GetCustomAttribute<AssemblyInformationalVersionAttribute>()?.InformationalVersion
        ?? type.Assembly.GetName().Version!.ToString();
}
