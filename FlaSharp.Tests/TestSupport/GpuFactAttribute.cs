using System.Runtime.CompilerServices;
using TorchSharp;
using Xunit;

namespace FlaSharp.Tests.TestSupport;

/// <summary>
/// A test that needs a CUDA GPU. Skipped with the reason where there is none; it runs, and so fails, if FLASHARP_REQUIRE_GPU=1.
/// </summary>
public sealed class GpuFactAttribute : FactAttribute
{
    private static readonly Lazy<bool> s_available = new(torch.cuda.is_available);

    public GpuFactAttribute([CallerFilePath] string? file = null, [CallerLineNumber] int line = -1) : base(file, line) =>
        Skip = SkipReason;

    internal static string? SkipReason =>
        Environment.GetEnvironmentVariable("FLASHARP_REQUIRE_GPU") == "1" || s_available.Value
            ? null
            : "No CUDA GPU that TorchSharp can use.";
}
