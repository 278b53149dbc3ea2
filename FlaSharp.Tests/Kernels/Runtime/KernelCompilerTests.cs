using System.Text;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.TestSupport;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class KernelCompilerTests
{
    [Fact]
    public void A_cubin_comes_with_its_report()
    {
        TestKernels.RequireNvrtc();
        var compiled = TestKernels.Compiler().Compile(TestKernels.Axpy, CompilerTarget.Sm90a);
        Assert.Equal("\x7f" + "ELF", Encoding.Latin1.GetString(compiled.Image, 0, 4));
        var report = CompileReport.Parse(compiled.Log, "axpy");
        Assert.InRange(report.Registers, 8, 64);
        Assert.Empty(report.Problems(0));
    }

    [Fact]
    public void A_program_of_several_kernels_reports_each_every_time_it_is_compiled()
    {
        TestKernels.RequireNvrtc();
        foreach (var variant in new[] { TestKernels.Axpy, TestKernels.BlockSum, TestKernels.Axpy })
        {
            var log = TestKernels.Compiler().Compile(variant, CompilerTarget.Sm80).Log; // one program: no cache may answer
            Assert.True(CompileReport.Parse(log, variant.Entry).Registers > 0, $"{variant}:\n{log}");
        }
    }

    [Theory]
    [InlineData("12.4", false)] // which does not know the option
    [InlineData("12.8", false)]
    [InlineData("12.9", true)]
    [InlineData("13.0", true)]
    public void The_compilers_own_cache_is_off(string version, bool hasCache)
    {
        var options = KernelCompiler.Options(TestKernels.Axpy, CompilerTarget.Sm80, Version.Parse(version));
        Assert.Equal(hasCache, options.Contains("--no-cache"));
    }

    [Fact]
    public void Later_gpus_get_PTX()
    {
        TestKernels.RequireNvrtc();
        var ptx = Encoding.UTF8.GetString(TestKernels.Compiler().Compile(TestKernels.Axpy, CompilerTarget.Ptx80).Image);
        Assert.Contains(".target sm_80", ptx, StringComparison.Ordinal);
        Assert.Contains(".entry axpy(", ptx, StringComparison.Ordinal);
        Assert.EndsWith("\0", ptx, StringComparison.Ordinal);
    }

    [Fact]
    public void Spills_are_a_problem()
    {
        TestKernels.RequireNvrtc();
        var compiled = TestKernels.Compiler().Compile(TestKernels.Spills, CompilerTarget.Sm80);
        var report = CompileReport.Parse(compiled.Log, "spills");
        Assert.True(report.SpillStoreBytes > 0 && report.SpillLoadBytes > 0, compiled.Log);
        Assert.NotEmpty(report.Problems(0));
    }

    [Fact]
    public void An_ignored_request_for_registers_is_a_problem()
    {
        TestKernels.RequireNvrtc();
        var variant = new KernelVariant("Test/slow.cu", "slow", [], 128, 0);
        var compiled = TestKernels.Compiler().Compile(variant, CompilerTarget.Sm90a);
        Assert.Contains("(C7508)", Assert.Single(CompileReport.Parse(compiled.Log, "slow").Problems(0)), StringComparison.Ordinal);
    }

    [Fact]
    public void A_mistake_is_reported_with_file_options_and_log()
    {
        TestKernels.RequireNvrtc();
        var variant = new KernelVariant("Test/mistake.cu", "mistake", ["SIZE=7"], 32, 0);
        var thrown = Assert.Throws<NvrtcException>(() => TestKernels.Compiler().Compile(variant, CompilerTarget.Sm80));
        Assert.Contains(
            "Test/mistake.cu(4): error: identifier \"undeclared\" is undefined", thrown.Log, StringComparison.Ordinal);
        Assert.Contains("Test/mistake.cu does not compile", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("-DSIZE=7", thrown.Message, StringComparison.Ordinal);
        Assert.Contains("--gpu-architecture=sm_80", thrown.Message, StringComparison.Ordinal);
        Assert.Contains(thrown.Log, thrown.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_target_that_the_compiler_does_not_know_is_reported()
    {
        TestKernels.RequireNvrtc();
        var thrown = Assert.Throws<NvrtcException>(
            () => TestKernels.Compiler().Compile(TestKernels.Axpy, new CompilerTarget("sm_20", 48 << 10)));
        Assert.Contains("--gpu-architecture=sm_20", thrown.Message, StringComparison.Ordinal);
    }

    [Fact]
    public void A_second_compilation_comes_from_the_cache_and_a_damaged_one_does_not()
    {
        TestKernels.RequireNvrtc();
        using var folder = new TemporaryFolder();
        var first = TestKernels.Compiler(folder.Path).Compile(TestKernels.Axpy, CompilerTarget.Sm80);
        var file = Assert.Single(Directory.GetFiles(folder.Path));
        var written = File.ReadAllBytes(file);

        var second = TestKernels.Compiler(folder.Path).Compile(TestKernels.Axpy, CompilerTarget.Sm80);
        Assert.Equal(first.Image, second.Image);
        Assert.Equal(first.Log, second.Log);

        File.WriteAllBytes(file, written[..^1]);
        var third = TestKernels.Compiler(folder.Path).Compile(TestKernels.Axpy, CompilerTarget.Sm80);
        // Compiled again: what the machine code is marked with may differ.
        Assert.Equal(TestKernels.WithoutTimes(first.Log), TestKernels.WithoutTimes(third.Log));
        Assert.Equal(written.Length - first.Log.Length, File.ReadAllBytes(file).Length - third.Log.Length);
        Assert.Equal(third.Image, TestKernels.Compiler(folder.Path).Compile(TestKernels.Axpy, CompilerTarget.Sm80).Image);
    }

    [Fact]
    public void Threads_compile_at_once()
    {
        TestKernels.RequireNvrtc();
        var compiler = TestKernels.Compiler();
        var logs = new string[8];
        Parallel.For(0, logs.Length, i => logs[i] = compiler.Compile(TestKernels.Axpy, CompilerTarget.Binary[i % 4]).Log);
        for (var i = 4; i < logs.Length; i++)
            Assert.Equal(TestKernels.WithoutTimes(logs[i - 4]), TestKernels.WithoutTimes(logs[i]));
    }
}
