using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>The decays of a chunk: strips of rows in threads, for several shapes of tile and block.</summary>
public sealed class ChunkGatesTests
{
    public static TheoryData<int, int, int> Shapes => new()
    {
        { 64, 16, 128 }, { 64, 256, 128 }, { 32, 32, 128 }, { 64, 128, 256 },
    };

    [GpuTheory]
    [MemberData(nameof(Shapes))]
    public void Decays_are_summed_and_strong_ones_are_seen(int chunk, int keys, int threads)
    {
        using var scope = NewDisposeScope();
        foreach (var reset in new[] { 0, -150 }) // as an infinite one counts
        {
            var g = WholeDecays.Of(chunk, keys, period: 5);
            var x = WholeDecays.Natural(g);
            x[1, 0] = reset == 0 ? 0 : float.NegativeInfinity;
            g[1, 0] = reset;
            var (z, w) = (NaN(chunk + 2, keys), zeros(threads, dtype: int32));
            Run(BlockKernels.ChunkGates("gate_sums", chunk, keys, threads), x, z: z, w: w);
            var sums = g.cumsum(0);
            Exact(z, cat([sums, sums.narrow(0, (chunk / 2) - 1, 1), sums.narrow(0, chunk - 1, 1)]), "sums");
            Exact(w, full(threads, reset == 0 ? 0 : 1), "strong");
        }
    }

    [GpuTheory]
    [MemberData(nameof(Shapes))]
    public void Queries_and_keys_are_scaled(int chunk, int keys, int threads)
    {
        using var scope = NewDisposeScope();
        var g = WholeDecays.Of(chunk, keys, period: 5);
        var (sums, y) = (g.cumsum(0), Codes(5, 11, chunk, keys));
        foreach (var type in HalfTypes)
        {
            var z = zeros(2, chunk, keys, dtype: bfloat16);
            Run(BlockKernels.ChunkGates("gate_scale", chunk, keys, threads, Element(type)),
                WholeDecays.Natural(g), y.to(type), z);
            Exact(z, stack([3 * y * pow(2.0, sums - sums[(chunk / 2) - 1]), y * pow(2.0, sums[chunk - 1] - sums)]), $"{type}");
        }
    }

    [GpuTheory]
    [MemberData(nameof(Shapes))]
    public void Each_level_of_splitting_has_its_operand(int chunk, int keys, int threads)
    {
        using var scope = NewDisposeScope();
        var g = WholeDecays.Of(chunk, keys, period: 5);
        var (sums, y) = (g.cumsum(0), Codes(5, 11, 2, chunk, keys));
        var row = arange(chunk);
        foreach (var type in HalfTypes)
        {
            var z = zeros(int.Log2(chunk), chunk, keys, dtype: bfloat16);
            Run(BlockKernels.ChunkGates("gate_levels", chunk, keys, threads, Element(type)),
                WholeDecays.Natural(g), y.to(type), z);
            for (var (half, level) = (chunk / 2, 0); half > 0; half /= 2, level++)
            {
                var border = sums[(row.floor_divide(2 * half) * 2 * half) + half - 1];
                var isQuery = (row.remainder(2 * half) >= half).unsqueeze(1);
                var expected = where(isQuery, 2 * y[0] * pow(2.0, sums - border), y[1] * pow(2.0, border - sums));
                Exact(z[level], expected, $"{type}, halves of {half}");
            }
        }
    }

    [GpuTheory]
    [MemberData(nameof(Shapes))]
    public void Sums_run_to_the_chunks_end(int chunk, int keys, int threads)
    {
        using var scope = NewDisposeScope();
        var (y, z) = (Codes(5, 101, chunk, keys), NaN(chunk, keys));
        Run(BlockKernels.ChunkGates("gate_sums_to_end", chunk, keys, threads), y: y, z: z);
        Exact(z, y.flip(0).cumsum(0).flip(0) + 100);
    }
}
