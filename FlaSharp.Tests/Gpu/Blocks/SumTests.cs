using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Sums over the threads of warps and blocks.</summary>
public sealed class SumTests
{
    [GpuTheory]
    [InlineData(1, 64)]
    [InlineData(4, 128)]
    [InlineData(32, 128)]
    [InlineData(64, 64)]
    [InlineData(256, 256)]
    public void Lines_of_threads_know_their_sum(int lanes, int threads)
    {
        using var scope = NewDisposeScope();
        var (x, z) = (Codes(5, 101, 3, threads), NaN(3, threads));
        Run(BlockKernels.LineSums(lanes, threads), x, z: z);
        Exact(z, x.reshape(3, -1, lanes).sum(2, keepdim: true).expand(-1, -1, lanes).reshape(3, threads));
    }

    [GpuTheory]
    [InlineData(16, 2, 2)]
    [InlineData(16, 4, 1)]
    [InlineData(64, 2, 4)]
    [InlineData(128, 4, 2)]
    [InlineData(512, 4, 2)]
    public void Sums_over_rows_are_dealt_out_to_the_lanes(int rows, int threadColumns, int warps)
    {
        using var scope = NewDisposeScope();
        const int Batch = 4; // as in recurrence.cuh
        var rowLanes = rows / (rows <= 16 ? 4 : rows <= 128 ? 8 : rows / 16);
        var columns = 32 / rowLanes * threadColumns * warps;
        var x = Codes(5, 101, rowLanes, Batch, columns);
        var (z, w) = (NaN(Batch, columns), NaN(32 * warps));
        Run(BlockKernels.RowSums(rows, threadColumns, warps), x, z: z, w: w);
        Exact(z, x.sum(dim: 0), "over rows");
        Exact(w, arange(32 * warps).reshape(warps, 8, 4).sum(1, keepdim: true).expand(-1, 8, -1).flatten(), "over lanes");
    }
}
