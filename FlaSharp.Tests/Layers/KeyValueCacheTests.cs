using FlaSharp.Layers;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>What the cache holds of rows that grow at different paces, also where steps go round in it.</summary>
public sealed class KeyValueCacheTests
{
    [Theory]
    [InlineData(null)]
    [InlineData(1)]
    [InlineData(5)]
    [InlineData(90)]
    public void Steps_that_go_round_keep_what_later_tokens_see(int? window)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var random = new Random(1);
        using var cache = new KeyValueCache(3, window);
        var seen = new[] { zeros(0, 2, 4), zeros(0, 2, 4), zeros(0, 2, 4) };
        Append([20, 150, 3], areRead: false, goesRound: false);
        for (var round = 0; round < 3; round++)
        {
            for (var step = 0; step < 100; step++)
                Append([random.Next(3), random.Next(4), random.Next(2)], areRead: true, goesRound: true);
            using var copy = cache.Clone();
            Append([2, 1, 0], areRead: true, goesRound: false);
            for (var row = 0; row < 3; row++)
            {
                var (keys, values) = cache.Row(row);
                var kept = keys.size(1);
                Assert.True(kept >= Math.Min(seen[row].size(0), window is null ? long.MaxValue : window.Value - 1));
                var expected = seen[row].narrow(0, seen[row].size(0) - kept, kept);
                Assert.True(keys[0].equal(expected).all().ToBoolean());
                Assert.True(values[0].equal(-expected).all().ToBoolean());
            }
        }

        void Append(int[] lengths, bool areRead, bool goesRound)
        {
            if (lengths.Sum() == 0)
                return;
            var tokens = randn(1, lengths.Sum(), 2, 4);
            long[] offsets = [0, lengths[0], lengths[0] + lengths[1], lengths.Sum()];
            cache.Append(tokens, -tokens, Sequences.Of(1, tokens.size(1), tensor(offsets)), areRead, goesRound);
            for (var row = 0; row < 3; row++)
                seen[row] = cat([seen[row], tokens[0].narrow(0, offsets[row], lengths[row])]);
        }
    }

    [Fact]
    public void A_window_bounds_the_memory()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var cache = new KeyValueCache(2, 8);
        for (var step = 0; step < 500; step++)
        {
            var tokens = randn(2, 1, 1, 4);
            cache.Append(tokens, tokens, Sequences.Of(2, 1, null), areRead: true, goesRound: true);
        }
        var last = randn(2, 1, 1, 4);
        cache.Append(last, last, Sequences.Of(2, 1, null), areRead: true);
        Assert.Equal(8, cache.All().keys.size(1)); // those before the window are gone
    }
}
