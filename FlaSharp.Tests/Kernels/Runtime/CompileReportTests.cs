using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class CompileReportTests
{
    // As NVRTC 12.4 prints it: the wanted entry, another one, and a function that was not inlined.
    private const string Log = """
        ptxas info    : 0 bytes gmem
        ptxas info    : Compiling entry function 'other' for 'sm_90a'
        ptxas info    : Function properties for other
            64 bytes stack frame, 40 bytes spill stores, 44 bytes spill loads
        ptxas info    : Used 255 registers, 560 bytes cmem[0]
        ptxas info    : Compiling entry function 'wanted' for 'sm_90a'
        ptxas info    : Function properties for wanted
            16 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Used 168 registers, used 1 barriers, 1024 bytes smem, 560 bytes cmem[0]
        ptxas info    : Function properties for _Z6helperf
            8 bytes stack frame, 2 bytes spill stores, 4 bytes spill loads
        """;

    [Fact]
    public void Registers_and_stack_are_those_of_the_entry_and_spills_those_of_all()
    {
        var report = CompileReport.Parse(Log, "wanted");
        Assert.Equal((168, 16, 1024, 42, 48),
            (report.Registers, report.StackBytes, report.StaticSharedBytes, report.SpillStoreBytes, report.SpillLoadBytes));
        Assert.Equal(["42 bytes of spill stores, 48 of spill loads"], report.Problems(0));
        Assert.Equal(255, CompileReport.Parse(Log, "other").Registers);
    }

    // Entries announced together, as a compiler that works on them at once may do.
    private const string TogetherLog = """
        ptxas info    : Compiling entry function 'first' for 'sm_90a'
        ptxas info    : Compiling entry function 'second' for 'sm_90a'
        ptxas info    : Function properties for second
        ptxas         .     8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Used 32 registers, used 1 barriers, 8 bytes cumulative stack size, 512 bytes smem
        ptxas info    : Compile time = 2.002 ms
        ptxas info    : Function properties for first
        ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Used 16 registers, used 0 barriers
        """;

    // A function that was not inlined comes before the entry that calls it.
    private const string CallingLog = """
        ptxas info    : Compiling entry function 'first' for 'sm_80'
        ptxas info    : Function properties for _Z6helperf
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Function properties for first
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Used 16 registers, 360 bytes cmem[0]
        ptxas info    : Compiling entry function 'second' for 'sm_80'
        ptxas info    : Function properties for second
            8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Function properties for _Z6helperf
            0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
        ptxas info    : Used 32 registers, 512 bytes smem, 360 bytes cmem[0]
        """;

    [Theory]
    [InlineData(TogetherLog)]
    [InlineData(CallingLog)]
    public void Each_entry_has_its_own_numbers_in_whatever_order_they_come(string log)
    {
        var (first, second) = (CompileReport.Parse(log, "first"), CompileReport.Parse(log, "second"));
        Assert.Equal((16, 0, 0), (first.Registers, first.StackBytes, first.StaticSharedBytes));
        Assert.Equal((32, 8, 512), (second.Registers, second.StackBytes, second.StaticSharedBytes));
    }

    [Theory]
    [InlineData("ptxas info    : (C7508) Potential Performance Loss: 'setmaxnreg' ignored to maintain compatibility", true)]
    [InlineData("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized", true)]
    [InlineData("ptxas info    : (C7514) Potential Performance Loss: wgmma.mma_async instructions are serialized", true)]
    [InlineData("ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized", true)]
    [InlineData("ptxas info    : (C7509) something else", false)]
    [InlineData("ptxas info    : (C7516) something else", false)]
    [InlineData("ptxas info    : 0 bytes gmem", false)]
    public void Warnings_of_slow_code_are_problems(string line, bool isProblem)
    {
        var report = CompileReport.Parse($"ptxas info    : 0 bytes gmem\n{line}\n", "wanted");
        Assert.Equal(isProblem ? [line] : [], report.Problems(0));
    }

    [Fact]
    public void An_empty_log_reports_nothing()
    {
        var report = CompileReport.Parse("", "wanted");
        Assert.Equal((0, 0, 0, 0, 0),
            (report.Registers, report.StackBytes, report.StaticSharedBytes, report.SpillStoreBytes, report.SpillLoadBytes));
        Assert.Empty(report.Problems(0));
    }
}
