using LanguageModel.Data;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Samples;

public sealed class BatchSamplerTests
{
    private static readonly int[] s_tokens = [.. Enumerable.Range(0, 100)];

    [Fact]
    public void A_batch_depends_on_seed_and_number_alone()
    {
        using DisposeScope scope = NewDisposeScope();
        var sampler = new BatchSampler(s_tokens, batch: 4, length: 8, seed: 3);
        long[] inOrder = Ids(sampler.Batch(0)).Concat(Ids(sampler.Batch(1))).Concat(Ids(sampler.Batch(2))).ToArray();
        var again = new BatchSampler(s_tokens, batch: 4, length: 8, seed: 3);
        long[] third = Ids(again.Batch(2));

        Assert.Equal(inOrder[64..], third);
        Assert.NotEqual(inOrder[..32], inOrder[32..64]);
        Assert.NotEqual(third, Ids(new BatchSampler(s_tokens, 4, 8, seed: 4).Batch(2)));
    }

    [Fact]
    public void Every_sequence_is_a_piece_of_the_text_and_every_piece_can_be_drawn()
    {
        using DisposeScope scope = NewDisposeScope();
        var sampler = new BatchSampler(s_tokens, batch: 2, length: 97, seed: 1);
        var starts = new HashSet<long>();
        for (int number = 0; number < 100; number++)
        {
            foreach (long[] row in Ids(sampler.Batch(number)).Chunk(97))
            {
                Assert.Equal(Enumerable.Range((int)row[0], 97).Select(i => (long)i), row);
                starts.Add(row[0]);
            }
        }

        Assert.Equal([0, 1, 2, 3], starts.Order());
    }

    [Fact]
    public void Windows_are_spread_over_the_text_and_do_not_overlap()
    {
        var windows = BatchSampler.Windows(s_tokens, length: 10, count: 3).Select(window => window.Span[0]);
        Assert.Equal([0, 30, 60], windows);
        Assert.Equal(10, BatchSampler.Windows(s_tokens, length: 10, count: 1000).Count());
    }

    private static long[] Ids(Tensor batch) => batch.data<long>().ToArray();
}
