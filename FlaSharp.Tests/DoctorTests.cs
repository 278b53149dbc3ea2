using FlaSharp.Kernels.Runtime;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests;

public sealed class DoctorTests
{
    [Fact]
    public void It_reports_what_is_here()
    {
        var report = Doctor.Examine();
        Assert.StartsWith("0.1.0", report.FlaSharp, StringComparison.Ordinal);
        Assert.StartsWith("0.10", report.TorchSharp, StringComparison.Ordinal);
        Assert.StartsWith($"{LoadedTorch.Version}, {LoadedTorch.Folder}, ", report.Libtorch, StringComparison.Ordinal);
        Assert.True(LoadedTorch.Version >= new Version(2, 9));
        Assert.True(Directory.Exists(LoadedTorch.Folder));
        var nvrtc = NvrtcLibrary.TryLoad(out var problem);
        Assert.Equal(nvrtc is null ? problem : $"{nvrtc.Version}, {nvrtc.Path}", report.Nvrtc);
        Assert.Equal(cuda.is_available() ? "cuda" : "cpu", report.Device.Split(':')[0]);
        Assert.True(!cuda.is_available() || !report.Gpus.Contains("none")); // a libtorch for the CPU may run beside a GPU
    }

    [Fact]
    public void It_lists_every_operation_once()
    {
        Type[] plans = [typeof(ModeChoice), typeof(OperationPath)];
        var operations = typeof(FlaOps).GetMethods().Where(method => method.IsStatic && !plans.Contains(method.ReturnType))
            .Select(method => method.Name).Order();
        Assert.Equal(operations, Doctor.Examine(CPU).Operations.Select(path => path.Operation).Order());
    }

    [Fact]
    public void The_path_of_Gla_is_the_one_it_takes()
    {
        var device = cuda.is_available() ? CUDA : CPU;
        using var q = zeros(1, 64, 1, 8, device: device);
        Assert.Equal(FlaOps.PlanGla(q).Path, Doctor.Examine(device).Operations.Single(path => path.Operation == "Gla").Path);
    }

    [Fact]
    public void The_text_has_a_line_for_each_part()
    {
        var report = Doctor.Examine(CPU);
        var lines = report.ToString().Split('\n');
        string[] starts =
            ["FlaSharp ", "GPU ", "driver ", "TorchSharp ", "libtorch ", "NVRTC ", "kernel cache ", "strict ", "operations on"];
        foreach (var start in starts)
            Assert.Contains(lines, line => line.StartsWith(start, StringComparison.Ordinal));
        Assert.Contains("  Attention              torch     There is no kernel for it on such a device.", lines);
        Assert.Contains("  Ssd                    cpu-simd  A kernel for the CPU.", lines);
        Assert.Equal(report.ToString(), Doctor.Report(CPU));
    }

    [Fact]
    public void The_settings_are_the_runtimes()
    {
        var (strict, message) = (CudaKernels.Strict, CudaKernels.Message);
        try
        {
            CudaKernels.Strict = !strict;
            Assert.Equal(!strict, CudaRuntime.Strict);
            Action<string> own = _ => { };
            CudaKernels.Message = own;
            Assert.Same(own, CudaRuntime.Message);
            Assert.Throws<ArgumentNullException>(() => CudaKernels.Message = null!);
        }
        finally
        {
            (CudaKernels.Strict, CudaKernels.Message) = (strict, message);
        }
    }
}
