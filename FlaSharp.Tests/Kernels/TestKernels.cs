using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels;

/// <summary>Small kernels to test the runtime with.</summary>
internal static class TestKernels
{
    public const int Threads = 256;
    private const int SharedFloats = 20 << 10; // beyond the 48 KiB that need no asking

    public static KernelSources Sources { get; } = KernelSources.Of(typeof(TestKernels).Assembly, typeof(KernelSources).Assembly);

    public static KernelVariant Axpy { get; } = Variant("axpy");

    public static KernelVariant BlockSum { get; } = Variant("block_sum") with { SharedBytes = SharedFloats * sizeof(float) };

    public static KernelVariant Spills { get; } = new("Test/spills.cu", "spills", [], 1024, 0);

    public static KernelVariant Fail { get; } = Variant("fail");

    public static KernelCompiler Compiler(string? cacheFolder = null) => new(Sources, new CubinCache(cacheFolder));

    /// <summary>Skips the test where there is no compiler.</summary>
    public static NvrtcLibrary RequireNvrtc()
    {
        var library = NvrtcLibrary.TryLoad(out var problem);
        Assert.SkipWhen(library is null && Environment.GetEnvironmentVariable("FLASHARP_REQUIRE_GPU") != "1", problem);
        return library ?? NvrtcLibrary.Load();
    }

    /// <summary>What a compiler's log says, without how long each part took: that differs from run to run.</summary>
    public static string WithoutTimes(string log) =>
        string.Join('\n', log.Split('\n').Where(line => !line.Contains("Compile time", StringComparison.Ordinal)));

    private static KernelVariant Variant(string entry) =>
        new("Test/axpy.cu", entry, [$"THREADS={Threads}", $"SHARED_FLOATS={SharedFloats}"], Threads, 0);

    /// <summary>AxpyParameters of axpy.cuh.</summary>
    public readonly record struct Parameters(nint X, nint Y, long Count, float A);
}
