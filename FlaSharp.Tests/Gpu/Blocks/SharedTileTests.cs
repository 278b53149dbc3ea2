using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

public sealed class SharedTileTests
{
    private const int Rows = 64, SourceRows = 70, FirstRow = 3, TargetColumn = 8;

    [GpuTheory]
    [InlineData(16, 16)]
    [InlineData(32, 32)]
    [InlineData(64, 64)]
    [InlineData(64, 128)]
    [InlineData(64, 256)]
    public void Elements_lie_where_the_copy_engines_swizzles_put_them(int rows, int cols)
    {
        using var scope = NewDisposeScope();
        var z = zeros(2, rows, cols, dtype: int32);
        Run(BlockKernels.SharedTile("tile_addresses", rows, cols), z: z);
        var expected = new int[2, rows, cols];
        var panel = Math.Min(64, cols);
        for (var i = 0; i < rows; i++)
            for (var j = 0; j < cols; j++)
            {
                var line = i * panel / 64; // of 128 bytes
                expected[0, i, j] =
                    (((j / panel * rows) + i) * panel * 2) + ((j % panel / 8 ^ line % (panel / 8)) * 16) + (j % 8 * 2);
                expected[1, i, j] = ((i * cols) + j) * 4;
            }
        Exact(z, from_array(expected));
    }

    [GpuTheory]
    [InlineData(16)]
    [InlineData(64)]
    [InlineData(128)]
    public void A_part_of_a_matrix_goes_through_a_tile(int cols)
    {
        using var scope = NewDisposeScope();
        foreach (var (vector, rows, count) in new[]
        {
            (8, 64, cols), (8, 41, cols - 8), (8, 1, 8), (8, 0, 8), (4, 33, cols - 4), (2, 64, cols - 6), (1, 64, cols),
            (1, 41, cols - 3), (1, 7, 1),
        })
            foreach (var backwards in new[] { false, true })
            {
                long stride = count + 16;
                var x = Indices(int16, SourceRows, stride);
                var z = full([Rows, cols], 9, int16);
                var w = full([SourceRows, stride], -1, int16);
                var first = backwards ? SourceRows - 1 : 0;
                Run(BlockKernels.SharedTile("tile_copy", Rows, cols, vector: vector), x, z: z, w: w,
                    stride: backwards ? -stride : stride, rows: rows, cols: count, xFirst: first, wFirst: first);

                var (tile, target) = (zeros(Rows, cols, dtype: int16), full([SourceRows, stride], -1, int16));
                var from = backwards ? SourceRows - FirstRow - rows : FirstRow;
                var part = x.narrow(0, from, rows).narrow(1, 0, count);
                tile.narrow(0, 0, rows).narrow(1, 0, count).copy_(backwards ? part.flip(0) : part);
                target.narrow(0, from, rows).narrow(1, TargetColumn, count).copy_(part);
                var what = $"{rows} x {count} in {cols} columns, {vector} together, backwards {backwards}";
                Exact(z, tile, $"{what}: tile");
                Exact(w, target, $"{what}: target");
            }
    }

    [GpuFact]
    public void A_tile_becomes_bfloat16_in_place()
    {
        using var scope = NewDisposeScope();
        var (x, z) = (Codes(7, 513, Rows, 64) / 8, zeros(Rows, 64, dtype: bfloat16));
        Run(BlockKernels.SharedTile("tile_to_bf16", Rows, 64, ElementType.Float16), x.to(float16), z: z);
        Exact(z, x.to(bfloat16));
    }
}
