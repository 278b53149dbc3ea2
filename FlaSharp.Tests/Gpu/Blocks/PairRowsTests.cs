using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Products between the tokens of a chunk.</summary>
public sealed class PairRowsTests
{
    private const int Chunk = 64;

    [GpuTheory]
    [InlineData(16)]
    [InlineData(64)]
    public void Products_are_masked_and_their_diagonal_is_kept(int keys)
    {
        using var scope = NewDisposeScope();
        var (x, y) = (Codes(5, 7, Chunk, keys), Codes(3, 5, Chunk, keys));
        var (z, w) = (zeros(Chunk, Chunk, dtype: bfloat16), NaN(Chunk));
        foreach (var threads in new[] { 128, 256, 512 })
        {
            Run(BlockKernels.PairRows("pair_products", keys, threads: threads), x.to(bfloat16), y.to(bfloat16), z, w);
            Exact(z, x.mm(y.t()).tril().to(bfloat16), $"pairs of {threads} threads");
            Exact(w, (x * y).sum(1), $"diagonal of {threads} threads");
        }
    }

    [GpuTheory]
    [InlineData(16)]
    [InlineData(64)]
    public void Chosen_pairs_are_added_in_chosen_blocks(int keys)
    {
        using var scope = NewDisposeScope();
        var (x, y) = (Codes(5, 7, Chunk, keys), Codes(3, 5, Chunk, keys));
        var (i, j) = (arange(Chunk).unsqueeze(1), arange(Chunk).unsqueeze(0));
        var chosen = (i.floor_divide(16) >= j.floor_divide(16)) & ((i + j).remainder(2) == 1);
        foreach (var type in HalfTypes)
        {
            var z = zeros(Chunk, Chunk, dtype: bfloat16);
            Run(BlockKernels.PairRows("pair_sums", keys, Element(type)), x.to(type), y.to(type), z);
            Exact(z, (1 + (2 * x.mm(y.t()) * chosen)).to(bfloat16), $"{type}");
        }
    }

    [GpuTheory]
    [InlineData(16)]
    [InlineData(32)]
    [InlineData(128)]
    public void Splitting_gives_every_pair_its_decay_once(int keys)
    {
        using var scope = NewDisposeScope();
        var g = WholeDecays.Of(Chunk, keys, period: 13).clamp(min: -1);
        var (sums, y) = (g.cumsum(0), Codes(5, 7, 2, Chunk, keys));
        var decay = pow(2.0, (sums.unsqueeze(1) - sums.unsqueeze(0)).clamp(max: 0)); // [i, j, k]
        var expected = (y[0].unsqueeze(1) * y[1].unsqueeze(0) * decay).sum(-1).tril().to(bfloat16);
        foreach (var type in HalfTypes)
        {
            var z = zeros(Chunk, Chunk, dtype: bfloat16);
            Run(BlockKernels.PairRows("split_pairs", keys, Element(type)), WholeDecays.Natural(g), y.to(type), z);
            Exact(z, expected, $"{type}");
        }
    }
}
