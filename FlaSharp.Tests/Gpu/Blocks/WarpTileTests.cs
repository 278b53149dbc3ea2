using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

public sealed class WarpTileTests
{
    [GpuTheory]
    [InlineData(64, 16, 64)]
    [InlineData(64, 64, 32)]
    [InlineData(64, 256, 16)]
    [InlineData(16, 16, 16)] // fewer tiles than warps
    public void The_warps_of_a_block_share_a_product(int rows, int cols, int depth)
    {
        using var scope = NewDisposeScope();
        var (x, y) = (Codes(5, 11, rows, depth), Codes(3, 13, depth, cols));
        var (z, w) = (NaN(rows, cols), zeros(rows, cols, dtype: int32));
        Run(BlockKernels.WarpTile(rows, cols, depth), x.to(bfloat16), y.to(bfloat16), z, w);
        Exact(z, 2 * x.mm(y), "product");

        var places = new int[rows, cols]; // pieces of 32 bytes, exchanged
        for (var i = 0; i < rows; i++)
            for (var j = 0; j < cols; j++)
                places[i, j] = (i * cols * 4) + ((j / 8 ^ i % Math.Min(8, cols / 8)) * 32) + (j % 8 * 4);
        Exact(w, from_array(places), "places");
    }
}
