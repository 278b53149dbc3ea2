using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels.Runtime;

public sealed class CompilerTargetTests
{
    [Theory]
    [InlineData(8, 0, "sm_80")]
    [InlineData(8, 6, "sm_86")]
    [InlineData(8, 9, "sm_89")]
    [InlineData(9, 0, "sm_90a")]
    [InlineData(8, 7, "compute_80")]
    [InlineData(10, 0, "compute_80")]
    [InlineData(12, 1, "compute_80")]
    [InlineData(7, 5, null)]
    [InlineData(3, 7, null)]
    public void A_compute_capability_has_its_target(int major, int minor, string? architecture) =>
        Assert.Equal(architecture, CompilerTarget.For(major, minor)?.Architecture);

    [Fact]
    public void Later_gpus_get_PTX_and_known_ones_a_binary()
    {
        Assert.True(CompilerTarget.Ptx80.IsPtx);
        Assert.Equal(80, CompilerTarget.Ptx80.Number);
        Assert.All(CompilerTarget.Binary, target => Assert.False(target.IsPtx));
        Assert.Equal([80, 86, 89, 90], CompilerTarget.Binary.Select(target => target.Number));
    }
}
