using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class CudaRuntimeTests
{
    private static readonly GpuInfo s_gpu = new()
    {
        Name = "GPU",
        Major = 9,
        Minor = 0,
        MultiprocessorCount = 132,
        MaxSharedBytesPerBlock = 227 << 10,
        SharedBytesPerMultiprocessor = 228 << 10,
        L2Bytes = 50 << 20,
        MemoryBytes = 80L << 30,
        MemoryClockKHz = 2_619_000,
        MemoryBusBits = 5120,
        DriverVersion = new Version(12, 4),
    };

    [Fact]
    public void Without_a_GPU_the_reason_says_what_is_missing()
    {
        try
        {
            Assert.SkipWhen(GpuDevice.Count() > 0, "This machine has a GPU.");
            Assert.False(CudaRuntime.IsAvailable(0, out var reason));
            Assert.Equal("there is no device 0; the driver sees 0.", reason);
        }
        catch (Exception e) when (e is DllNotFoundException or CudaException)
        {
            Assert.False(CudaRuntime.IsAvailable(0, out var reason));
            Assert.Equal(e.Message, reason);
            if (e is DllNotFoundException)
                Assert.Contains(OperatingSystem.IsWindows() ? "nvcuda.dll" : "libcuda.so.1", reason, StringComparison.Ordinal);
        }
    }

    [Fact]
    public void Each_reason_is_told_once()
    {
        var (strict, before, messages) = (CudaRuntime.Strict, CudaRuntime.Message, new List<string>());
        (CudaRuntime.Strict, CudaRuntime.Message) = (false, messages.Add);
        try
        {
            for (var i = 0; i < 3; i++)
            {
                CudaRuntime.FallBack("A", "reason 1.");
                CudaRuntime.FallBack("A", "reason 2.");
            }
        }
        finally
        {
            (CudaRuntime.Strict, CudaRuntime.Message) = (strict, before);
        }
        Assert.Equal(
            ["A runs on TorchSharp's operations, more slowly: reason 1.",
                "A runs on TorchSharp's operations, more slowly: reason 2."], messages);
    }

    [Fact]
    public void Strict_mode_throws()
    {
        var before = CudaRuntime.Strict;
        CudaRuntime.Strict = true;
        try
        {
            var thrown = Assert.Throws<NotSupportedException>(() => CudaRuntime.FallBack("A", "it is strict."));
            Assert.Equal(
                "A has no CUDA kernel here, and FLASHARP_STRICT forbids going on without: it is strict.", thrown.Message);
        }
        finally
        {
            CudaRuntime.Strict = before;
        }
    }

    [Theory]
    [InlineData("12.4", "90", null)]
    [InlineData("12.9", "90", null)] // binaries of one major version are the driver's to load
    [InlineData("13.0", "90", "the driver supports CUDA 12.4, but NVRTC is 13.0")]
    [InlineData("12.4", "80", "NVRTC 12.4 does not compile for sm_90a, as GPU needs")]
    public void A_compiler_that_does_not_suit_the_gpu_is_told(string nvrtc, string architectures, string? expected) =>
        AssertMismatch(expected,
            CudaRuntime.Mismatch(s_gpu, CompilerTarget.Sm90a, Version.Parse(nvrtc), [int.Parse(architectures)]));

    [Theory]
    [InlineData("12.4", null)]
    [InlineData("12.5", "the driver supports CUDA 12.4, but NVRTC is 12.5")] // PTX of a later version than the driver's
    public void PTX_must_not_be_newer_than_the_driver(string nvrtc, string? expected) =>
        AssertMismatch(expected, CudaRuntime.Mismatch(s_gpu, CompilerTarget.Ptx80, Version.Parse(nvrtc), [80]));

    [Fact]
    public void An_old_gpu_is_named() => Assert.Equal(
        "GPU has compute capability 7.5; the kernels need 8.0 (Ampere) or later.",
        CudaRuntime.TooOld(s_gpu with { Major = 7, Minor = 5 }));

    private static void AssertMismatch(string? expected, string? actual)
    {
        if (expected is null)
            Assert.Null(actual);
        else
            Assert.StartsWith(expected, actual, StringComparison.Ordinal);
    }
}
