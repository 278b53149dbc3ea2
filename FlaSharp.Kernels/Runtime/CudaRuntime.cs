using System.Collections.Concurrent;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>Whether this library's CUDA kernels can run, and what happens where they cannot.</summary>
internal static class CudaRuntime
{
    public const string StrictVariable = "FLASHARP_STRICT";
    public const string DisabledVariable = "FLASHARP_DISABLE_KERNELS";
    public const string SynchronousVariable = "FLASHARP_SYNC";

    private static readonly ConcurrentDictionary<int, (bool available, string reason)> s_devices = new();
    private static readonly ConcurrentDictionary<string, bool> s_told = new();

    /// <summary>Whether an operation without a kernel throws, instead of taking TorchSharp's operations.</summary>
    public static bool Strict { get; set; } = IsSet(StrictVariable);

    /// <summary>Whether each launch waits for its kernel, so that a failure appears where it happened.</summary>
    public static bool Synchronous { get; } = IsSet(SynchronousVariable);

    /// <summary>Gets each message once.</summary>
    public static Action<string> Message { get; set; } = static text => Console.Error.WriteLine($"FlaSharp: {text}");

    /// <summary>Whether kernels can be compiled for a device and run on it. The answer is found once.</summary>
    /// <param name="device">Its index.</param>
    /// <param name="reason">Why not, or what for and with what.</param>
    public static bool IsAvailable(int device, out string reason)
    {
        if (!s_devices.TryGetValue(device, out var answer))
            answer = s_devices.GetOrAdd(device, static device => Examine(device));
        reason = answer.reason;
        return answer.available;
    }

    /// <summary>Says, once, that an operation runs without its kernel; in strict mode it throws.</summary>
    /// <exception cref="NotSupportedException">In strict mode.</exception>
    public static void FallBack(string operation, string reason)
    {
        if (Strict)
            throw new NotSupportedException(
                $"{operation} has no CUDA kernel here, and {StrictVariable} forbids going on without: {reason}");
        Tell($"{operation} runs on TorchSharp's operations, more slowly: {reason}");
    }

    /// <summary>Gives a message to <see cref="Message"/>, unless it has been given.</summary>
    public static void Tell(string message)
    {
        if (s_told.TryAdd(message, true))
            Message(message);
    }

    public static string TooOld(GpuInfo info) =>
        $"{info.Name} has compute capability {info.Major}.{info.Minor}; the kernels need 8.0 (Ampere) or later.";

    /// <summary>Whether NVRTC can compile for a GPU, and the driver load that.</summary>
    /// <returns>The reason why not, or null.</returns>
    public static string? Mismatch(GpuInfo gpu, CompilerTarget target, Version nvrtc, IReadOnlyList<int> architectures)
    {
        if (!architectures.Contains(target.Number))
            return $"NVRTC {nvrtc} does not compile for {target}, as {gpu.Name} needs: "
                + $"name a newer one in {NvrtcSearch.Override}.";
        // A driver takes the binaries of its major version's compilers, but PTX only up to its own version.
        return nvrtc.Major > gpu.DriverVersion.Major || (target.IsPtx && nvrtc > gpu.DriverVersion)
            ? $"the driver supports CUDA {gpu.DriverVersion}, but NVRTC is {nvrtc}: "
                + $"update the driver or name an older one in {NvrtcSearch.Override}."
            : null;
    }

    private static (bool, string) Examine(int ordinal)
    {
        if (IsSet(DisabledVariable))
            return (false, $"{DisabledVariable} is set.");
        try
        {
            var count = GpuDevice.Count();
            if (ordinal >= count)
                return (false, $"there is no device {ordinal}; the driver sees {count}.");
            var device = GpuDevice.Get(ordinal);
            if (device.Target is not { } target)
                return (false, TooOld(device.Info));
            if (NvrtcLibrary.TryLoad(out var problem) is not { } nvrtc)
                return (false, problem);
            return Mismatch(device.Info, target, nvrtc.Version, nvrtc.Architectures) is { } mismatch
                ? (false, mismatch)
                : (true, $"{device.Info.Name}, {target}, NVRTC {nvrtc.Version}.");
        }
        catch (Exception e) when (e is DllNotFoundException or EntryPointNotFoundException or CudaException or NvrtcException)
        {
            return (false, e.Message);
        }
    }

    private static bool IsSet(string variable) => Environment.GetEnvironmentVariable(variable) == "1";
}
