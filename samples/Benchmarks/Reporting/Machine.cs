using System.Runtime.InteropServices;
using System.Text.Json.Nodes;
using System.Text.RegularExpressions;
using Benchmarks.Measuring;
using FlaSharp;

namespace Benchmarks.Reporting;

/// <summary>What was measured on.</summary>
/// <param name="Device">The GPU, or the CPU.</param>
/// <param name="Driver">Of the GPU; null on the CPU.</param>
/// <param name="Libtorch">Its version.</param>
/// <param name="Nvrtc">Its version; null on the CPU.</param>
/// <param name="FlaSharp">Its version.</param>
internal sealed partial record Machine(string Device, string? Driver, string Libtorch, string? Nvrtc, string FlaSharp)
{
    private const string NvidiaVersion = "/proc/driver/nvidia/version";
    private const string CpuInfo = "/proc/cpuinfo";

    public static Machine Of(Target target)
    {
        DoctorReport doctor = Doctor.Examine(target.Device);
        // Versions without the folders that they lie in on this machine.
        (string libtorch, string nvrtc) = (doctor.Libtorch.Split(',')[0], doctor.Nvrtc.Split(',')[0]);
        return target.Gpu is null
            ? new Machine($"cpu ({CpuName()}, {Environment.ProcessorCount} processors)", null, libtorch, null, doctor.FlaSharp)
            : new Machine(target.Gpu.ToString(), DriverVersion() + doctor.Driver, libtorch, nvrtc, doctor.FlaSharp);
    }

    public override string ToString() =>
        $"{Device}{(Driver is null ? "" : $"; driver {Driver}")}; libtorch {Libtorch}"
        + $"{(Nvrtc is null ? "" : $"; NVRTC {Nvrtc}")}; FlaSharp {FlaSharp}";

    public JsonObject Json() => new()
    {
        ["device"] = Device,
        ["driver"] = Driver,
        ["libtorch"] = Libtorch,
        ["nvrtc"] = Nvrtc,
        ["flasharp"] = FlaSharp,
    };

    /// <summary>The driver's own version, which its library tells only as that of CUDA; empty where it is not to be had.</summary>
    private static string DriverVersion()
    {
        string line = File.Exists(NvidiaVersion) ? File.ReadLines(NvidiaVersion).FirstOrDefault("") : "";
        return Version().Match(line) is { Success: true } version ? $"{version.Value}, " : "";
    }

    [GeneratedRegex(@"\b\d+(\.\d+)+\b")]
    private static partial Regex Version();

    private static string CpuName()
    {
        string? line = File.Exists(CpuInfo)
            ? File.ReadLines(CpuInfo).FirstOrDefault(line => line.StartsWith("model name", StringComparison.Ordinal))
            : null;
        return line is null ? RuntimeInformation.ProcessArchitecture.ToString() : line[(line.IndexOf(':') + 1)..].Trim();
    }
}
