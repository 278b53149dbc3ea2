using System.Globalization;
using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels;

/// <summary>
/// Of kernels whose warps change their numbers of registers: a block has what it was launched with, and a warp that asks for more
/// waits forever. fla/chunk_pipeline.cuh asserts it where a kernel is compiled.
/// </summary>
public sealed class RegisterShareTests
{
    private const int MultiprocessorRegisters = 65_536;
    private const int WarpSize = 32;

    [Theory]
    [InlineData("Gla/chunk_forward.cu")]
    [InlineData("Gla/chunk_forward_cluster.cu")]
    [InlineData("Gla/chunk_state.cu")]
    [InlineData("Ssd/chunk_scan.cu")]
    public void Warps_ask_for_no_more_than_the_block_has(string source)
    {
        var variants = KernelCatalog.AllVariants(CompilerTarget.Sm90a)
            .Where(variant => variant.Source == source && Define(variant, "PRODUCER_REGISTERS") > 0).ToList();
        Assert.NotEmpty(variants);
        Assert.All(variants, variant =>
        {
            var (producers, consumers) = (Define(variant, "PRODUCER_REGISTERS"), Define(variant, "CONSUMER_REGISTERS"));
            Assert.All([producers, consumers], registers =>
            {
                Assert.InRange(registers, 24, 256);
                Assert.Equal(0, registers % 8);
            });
            // The compiler gives each thread at the launch a multiple of 8.
            var share = MultiprocessorRegisters / Define(variant, "MIN_BLOCKS") / variant.Threads / 8 * 8;
            var wanted = WarpSize * ((Define(variant, "PRODUCERS") * producers) + (Define(variant, "CONSUMERS") * consumers));
            Assert.InRange(wanted, 1, share * variant.Threads);
        });
    }

    private static int Define(KernelVariant variant, string name) =>
        int.Parse(variant.Defines.Single(define => define.StartsWith($"{name}=", StringComparison.Ordinal))[(name.Length + 1)..],
            CultureInfo.InvariantCulture);
}
