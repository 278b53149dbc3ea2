using FlaSharp.Models;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Models;

public sealed class GenerationTests
{
    public static TheoryData<string> Names => TinyModels.Names;

    [Theory, MemberData(nameof(Names))]
    public void Greedy_takes_the_likeliest_token_of_the_whole_text(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create(name);
        var text = model.Generate(TinyModels.Ids(2, 5), new GenerationOptions { MaxNewTokens = 10 });
        Assert.Equal([2, 15], text.shape);
        Assert.Equal(Values(text[.., 5..]), Values(model.forward(text).argmax(-1)[.., 4..14]));
        Assert.False(text.requires_grad);
    }

    [Theory, MemberData(nameof(Names))]
    public void A_padded_batch_continues_each_row_as_if_alone(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create(name);
        var options = new GenerationOptions { MaxNewTokens = 8 };
        var ids = TinyModels.Ids(3, 7);
        var mask = tensor(new long[,] { { 0, 0, 0, 1, 1, 1, 1 }, { 1, 1, 1, 1, 1, 1, 1 }, { 1, 1, 0, 0, 0, 0, 0 } });
        var together = model.Generate(ids, options, mask);
        Assert.Equal(Values(ids), Values(together[.., ..7]));
        for (var row = 0; row < 3; row++)
        {
            var alone = ids[row].index_select(0, mask[row].nonzero().flatten()).unsqueeze(0);
            Assert.Equal(Values(model.Generate(alone, options)[.., (int)alone.size(1)..]), Values(together[row, 7..]));
        }
    }

    [Fact]
    public void A_row_stops_at_its_end_token()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("gla");
        var ids = TinyModels.Ids(2, 5);
        var free = model.Generate(ids, new GenerationOptions { MaxNewTokens = 12 });
        var end = (int)free[0, 8].item<long>(); // at the latest the fourth new token of the first row
        var options = new GenerationOptions { MaxNewTokens = 12, EosTokenIds = [end], PadTokenId = 9 };
        var stopped = model.Generate(ids, options);
        for (var row = 0; row < 2; row++)
        {
            var expected = Values(free[row, 5..]);
            var stop = Array.IndexOf(expected, end);
            for (var t = 0; t < stopped.size(1) - 5; t++)
                Assert.Equal(stop >= 0 && t > stop ? 9 : expected[t], stopped[row, t + 5].item<long>());
        }
        var alone = model.Generate(ids[..1], options);
        Assert.Equal(end, alone[0, -1].item<long>());
        Assert.True(alone.size(1) <= 9);

        using var configured = new CausalLM(model.Config with { EosTokenIds = [end, 60] });
        configured.LoadWeights(model.state_dict());
        Assert.Equal(Values(alone), Values(configured.Generate(ids[..1], new GenerationOptions { MaxNewTokens = 12 })));
    }

    [Fact]
    public void Narrow_sampling_is_greedy()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba2");
        var ids = TinyModels.Ids(2, 5);
        var sampled = new GenerationOptions { MaxNewTokens = 10, DoSample = true, Seed = 5 };
        var greedy = Values(model.Generate(ids, sampled with { DoSample = false }));
        Assert.Equal(greedy, Values(model.Generate(ids, sampled with { TopK = 1 })));
        Assert.Equal(greedy, Values(model.Generate(ids, sampled with { TopP = 1e-6 })));
        Assert.Equal(greedy, Values(model.Generate(ids, sampled with { MinP = 1 })));
        Assert.Equal(greedy, Values(model.Generate(ids, sampled with { Temperature = 1e-4 })));
        Assert.NotEqual(greedy, Values(model.Generate(ids, sampled)));
    }

    [Fact]
    public void The_seed_decides_the_text()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba2");
        var ids = TinyModels.Ids(2, 5);
        var options = new GenerationOptions { MaxNewTokens = 10, DoSample = true, Seed = 5 };
        Assert.Equal(Values(model.Generate(ids, options)), Values(model.Generate(ids, options)));
        Assert.NotEqual(Values(model.Generate(ids, options)), Values(model.Generate(ids, options with { Seed = 6 })));

        manual_seed(8);
        var first = Values(model.Generate(ids, options with { Seed = null }));
        manual_seed(8);
        Assert.Equal(first, Values(model.Generate(ids, options with { Seed = null })));
    }

    [Fact]
    public void Tokens_are_drawn_with_the_probabilities_of_the_model()
    {
        using var scope = NewDisposeScope();
        const int Rows = 20000;
        float[] probabilities = [0.4f, 0.3f, 0.15f, 0.1f, 0.05f];
        var logits = tensor(probabilities).log().expand(Rows, 5);
        using var prompt = zeros([Rows, 1], ScalarType.Int64);
        var all = new GenerationOptions { DoSample = true, Seed = 2 };
        Check(all, [0.4, 0.3, 0.15, 0.1, 0.05]);
        Check(all with { TopK = 2 }, [4 / 7.0, 3 / 7.0, 0, 0, 0]);
        Check(all with { TopP = 0.8 }, [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]);
        Check(all with { TopP = 0.39 }, [1, 0, 0, 0, 0]);
        Check(all with { MinP = 0.3 }, [0.4 / 0.85, 0.3 / 0.85, 0.15 / 0.85, 0, 0]);
        Check(all with { Temperature = 0.5 }, [0.16 / 0.285, 0.09 / 0.285, 0.0225 / 0.285, 0.01 / 0.285, 0.0025 / 0.285]);

        void Check(GenerationOptions options, double[] expected)
        {
            using var sampler = new Sampler(options, prompt, null, 5);
            var tokens = sampler.Next(logits);
            for (var token = 0; token < 5; token++)
            {
                var share = tokens.Count(drawn => drawn == token) / (double)Rows;
                var deviation = Math.Sqrt(expected[token] * (1 - expected[token]) / Rows);
                Assert.True(Math.Abs(share - expected[token]) <= 5 * deviation, $"{options}: {share} of the tokens are {token}.");
            }
        }
    }

    [Fact]
    public void Repetition_penalty_lowers_the_tokens_of_the_row()
    {
        using var scope = NewDisposeScope();
        var options = new GenerationOptions { RepetitionPenalty = 2 };
        var prompt = tensor(new long[,] { { 0, 1 }, { 3, 2 } });
        var mask = tensor(new long[,] { { 1, 1 }, { 0, 1 } });
        using var sampler = new Sampler(options, prompt, mask, 4);
        var logits = tensor(new float[,] { { 3, -1, 2, 1 }, { -3, -4, -1, -1.5f } });
        Assert.Equal([2, 3], sampler.Next(logits)); // 3 / 2 < 2; -1 * 2 < -1.5, and the padding's 3 is not of the row
        Assert.Equal([0, 2], sampler.Next(logits)); // the tokens just taken count, too: 2 / 2, -1.5 * 2

        using var model = TinyModels.Create("gla");
        var ids = TinyModels.Ids(1, 5);
        var text = Values(model.Generate(ids, new GenerationOptions { MaxNewTokens = 30, RepetitionPenalty = 1e6 })[0, 5..]);
        Assert.Equal(30, text.Distinct().Count());
    }

    [Fact]
    public async Task Streams_give_the_same_tokens()
    {
        using var model = TinyModels.Create("mamba");
        using var ids = TinyModels.Ids(2, 5);
        var options = new GenerationOptions { MaxNewTokens = 6, DoSample = true, Seed = 3 };
        using var text = model.Generate(ids, options);
        using var added = text[.., 5..].t().contiguous();
        Assert.Equal(Values(added), model.GenerateTokens(ids, options).SelectMany(step => step));

        var streamed = new List<long>();
        await foreach (var step in model.GenerateAsync(ids, options, cancellationToken: TestContext.Current.CancellationToken))
            streamed.AddRange(step);
        Assert.Equal(Values(added), streamed);

        using var cancel = new CancellationTokenSource();
        var count = 0;
        await Assert.ThrowsAnyAsync<OperationCanceledException>(async () =>
        {
            await foreach (var step in model.GenerateAsync(ids, options, cancellationToken: cancel.Token))
                if (++count == 2)
                    await cancel.CancelAsync();
        });
        Assert.Equal(2, count);
    }

    [Fact]
    public void Between_two_tokens_nothing_of_the_caller_has_changed()
    {
        using var model = TinyModels.Create("mamba");
        using var ids = TinyModels.Ids(1, 5);
        using var scope = NewDisposeScope();
        foreach (var _ in model.GenerateTokens(ids, new GenerationOptions { MaxNewTokens = 3 }))
            Assert.True(is_grad_enabled());
        Assert.Equal(0, scope.DisposablesCount);
    }

    [Fact]
    public void Bad_input_is_refused()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba");
        var ids = TinyModels.Ids(2, 5);
        Throws("prompt", ids[.., ..0], new());
        Throws("prompt", ids + 61, new());
        Throws("prompt", ids.to(ScalarType.Int32), new());
        Throws("attentionMask", ids, new(), ones(2, 4));
        Throws("attentionMask", ids, new(), tensor(new long[,] { { 1, 1, 1, 1, 1 }, { 0, 0, 0, 0, 0 } }));
        Throws("MaxNewTokens", ids, new() { MaxNewTokens = 0 });
        Throws("Temperature", ids, new() { Temperature = -1 });
        Throws("Temperature", ids, new() { Temperature = 0 });
        Throws("Temperature", ids, new() { Temperature = double.NaN });
        Throws("TopK", ids, new() { TopK = 0 });
        Throws("TopP", ids, new() { TopP = 0 });
        Throws("TopP", ids, new() { TopP = 1.1 });
        Throws("MinP", ids, new() { MinP = -0.1 });
        Throws("RepetitionPenalty", ids, new() { RepetitionPenalty = 0 });
        Throws("EosTokenIds", ids, new() { EosTokenIds = [61] });
        Throws("PadTokenId", ids, new() { PadTokenId = -1 });

        void Throws(string name, Tensor prompt, GenerationOptions options, Tensor? mask = null)
        {
            foreach (var action in new Action[]
            {
                () => model.Generate(prompt, options, mask), () => model.GenerateTokens(prompt, options, mask),
                () => model.GenerateAsync(prompt, options, mask),
            })
                Assert.Contains(name, Assert.ThrowsAny<ArgumentException>(action).Message);
        }
    }

    [Fact]
    public void NaN_in_the_weights_is_reported()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba");
        using (no_grad())
            model.parameters().First()[1..].fill_(float.NaN);
        // An operation's guard is the first to see it on the CPU, the sampler on a GPU.
        Assert.Contains("NaN", Assert.ThrowsAny<Exception>(() => model.Generate(TinyModels.Ids(1, 3))).Message);
    }

    private static long[] Values(Tensor tokens) => tokens.contiguous().data<long>().ToArray();
}
