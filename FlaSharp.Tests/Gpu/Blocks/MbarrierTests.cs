using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Barriers in shared memory.</summary>
public sealed class MbarrierTests
{
    private const int Producers = 64, Consumers = 96; // as in mbarrier.cu

    [GpuTheory]
    [InlineData(1)]
    [InlineData(2)]
    [InlineData(9)]
    [InlineData(1000)]
    public void Who_waits_sees_what_was_written_before_the_arrivals(int rounds)
    {
        using var scope = NewDisposeScope();
        var z = zeros(rounds, Consumers, dtype: int32);
        Run(BlockKernels.MbarrierPhases, z: z, rows: rounds);
        var sums = (arange(rounds) * (1000 * Producers)) + (Producers * (Producers - 1) / 2);
        Exact(z, sums.unsqueeze(1) + arange(Consumers), $"{rounds} rounds");
    }
}
