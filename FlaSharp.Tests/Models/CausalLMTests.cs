using FlaSharp.Models;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using TorchSharp.Modules;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Models;

public sealed class CausalLMTests
{
    public static TheoryData<string> Names => TinyModels.Names;

    [Theory, MemberData(nameof(Names))]
    public void Prompt_and_steps_give_what_one_pass_gives(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var model = TinyModels.Create(name);
        var ids = TinyModels.Ids(2, 21);
        var whole = model.forward(ids);

        using var state = model.NewState();
        var parts = new List<Tensor>();
        foreach (var (start, end) in new[] { (0, 7), (7, 8), (8, 9), (9, 13), (13, 21) })
            parts.Add(model.forward(ids[.., start..end], null, state: state));
        Compare.Close(cat(parts, 1), whole, 1e-5, name);
        Assert.Equal(21, state.SeenTokens);
    }

    [Theory, MemberData(nameof(Names))]
    public void Padding_anywhere_changes_nothing(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create(name);
        var ids = TinyModels.Ids(4, 9);
        var mask = tensor(new long[,]
        {
            { 0, 0, 0, 1, 1, 1, 1, 1, 1 }, { 1, 1, 1, 1, 1, 0, 0, 0, 0 },
            { 1, 0, 1, 1, 0, 0, 1, 1, 1 }, { 1, 1, 1, 1, 1, 1, 1, 1, 1 },
        });
        var logits = model.forward(ids, mask);
        var (losses, count) = (zeros(1), 0L);
        for (var row = 0; row < 4; row++)
        {
            var places = mask[row].nonzero().flatten();
            var alone = ids[row].index_select(0, places).unsqueeze(0);
            Compare.Close(logits[row].index_select(0, places), model.forward(alone)[0], 1e-5, $"{name}, row {row}");
            losses = losses + model.Loss(alone, alone) * (alone.size(1) - 1);
            count += alone.size(1) - 1;
        }
        Assert.Equal(0, logits[mask.eq(0)].abs().sum().item<float>());
        Compare.Close(model.Loss(ids, ids, mask).reshape(1), losses / count, 1e-5, $"{name}: loss");
    }

    [Theory, MemberData(nameof(Names))]
    public void Packed_sequences_do_not_see_each_other(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create(name);
        var ids = TinyModels.Ids(1, 16);
        var bounds = tensor(new long[] { 0, 5, 5, 6, 16 });
        var logits = model.forward(ids, null, bounds);
        var loss = (model.Loss(ids[.., ..5], ids[.., ..5]) * 4 + model.Loss(ids[.., 6..], ids[.., 6..]) * 9) / 13;
        foreach (var (start, end) in new[] { (0, 5), (5, 6), (6, 16) })
            Compare.Close(logits[.., start..end], model.forward(ids[.., start..end]), 1e-5, $"{name} from {start}");
        Compare.Close(model.Loss(ids, ids, cuSeqlens: bounds), loss, 1e-5, $"{name}: loss");
    }

    [Theory, MemberData(nameof(Names))]
    public void Learns_a_sentence(string name)
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create(name);
        var ids = TinyModels.Ids(2, 12);
        using var optimizer = optim.AdamW(model.parameters(), lr: 1e-2);
        var first = model.Loss(ids, ids).item<float>();
        for (var step = 0; step < 30; step++)
        {
            using var inner = NewDisposeScope();
            optimizer.zero_grad();
            model.Loss(ids, ids).Backward();
            optimizer.step();
        }
        var last = model.Loss(ids, ids).item<float>();
        Assert.True(last < 0.3 * first, $"{name}: the loss went from {first} to {last}.");
        foreach (var (parameter, tensor) in model.named_parameters())
            Assert.True(tensor.grad is { } grad && grad.abs().sum().item<float>() > 0, parameter);
    }

    [Theory, MemberData(nameof(Names))]
    public void Bfloat16_is_close_to_float32_of_the_same_weights(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var half = TinyModels.Create(name, ScalarType.BFloat16);
        using var full = TinyModels.Create(name);
        full.LoadWeights(half.state_dict());
        var ids = TinyModels.Ids(2, 20);
        var logits = half.forward(ids);
        Assert.Equal(ScalarType.BFloat16, logits.dtype);
        Compare.Close(logits, full.forward(ids), 0.04, name); // three blocks that round to 8 bits: from 0.005 to 0.029 is seen
        Assert.Equal(full.Loss(ids, ids).item<float>(), half.Loss(ids, ids).item<float>(), 0.02f);

        full.to(ScalarType.BFloat16);
        Compare.Close(full.forward(ids), logits, 1e-3, $"{name} after .to(bfloat16)");
    }

    [Fact]
    public void Loss_is_the_mean_over_the_labels_that_count()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba");
        var ids = TinyModels.Ids(2, 8);
        var labels = ids.clone();
        labels[0, ..5] = -100;
        labels[1, 0] = 7; // never predicted
        var probabilities = model.forward(ids).to(ScalarType.Float64).log_softmax(-1).cpu();
        var sum = 0.0;
        for (var (row, count) = (0, 0); row < 2; row++)
            for (var t = row == 0 ? 4 : 0; t < 7; t++, count++)
                sum -= probabilities[row, t, ids[row, t + 1].item<long>()].item<double>() / 10;
        Assert.Equal(sum, model.Loss(ids, labels).item<float>(), 1e-5);
    }

    [Theory, InlineData("mamba"), InlineData("llama"), InlineData("mamba2 hybrid")]
    public void Tied_embeddings_get_the_gradient_of_both_uses(string name)
    {
        using var scope = NewDisposeScope();
        using var tied = TinyModels.Create(name);
        Assert.DoesNotContain("lm_head.weight", tied.state_dict().Keys);
        using var untied = new CausalLM(tied.Config with { TieWordEmbeddings = false });
        var weights = tied.state_dict();
        var embeddings = weights.Keys.Single(key => key.Contains("embed"));
        weights["lm_head.weight"] = weights[embeddings];
        untied.LoadWeights(weights);

        var ids = TinyModels.Ids(2, 10);
        tied.Loss(ids, ids).Backward();
        untied.Loss(ids, ids).Backward();
        Tensor Gradient(CausalLM model, string key) => model.named_parameters().Single(p => p.name == key).parameter.grad!;
        Compare.Close(Gradient(tied, embeddings), Gradient(untied, embeddings) + Gradient(untied, "lm_head.weight"), 1e-5, name);
        Assert.Equal(untied.ParameterCount - TinyModels.Vocabulary * 32, tied.ParameterCount);

        using var optimizer = optim.SGD(tied.parameters(), 0.5);
        var expected = weights[embeddings].detach() - 0.5 * Gradient(tied, embeddings);
        optimizer.step();
        Compare.Close(tied.state_dict()[embeddings], expected, 1e-6, "one step of SGD");
    }

    [Fact]
    public void The_seed_decides_the_weights()
    {
        using var scope = NewDisposeScope();
        using var a = TinyModels.Create("gla with convolution");
        using var b = TinyModels.Create("gla with convolution");
        using var c = new CausalLM(a.Config);
        foreach (var (name, tensor) in a.state_dict())
            Assert.True(tensor.equal(b.state_dict()[name]).all().item<bool>(), name);
        Assert.False(a.state_dict()["lm_head.weight"].equal(c.state_dict()["lm_head.weight"]).all().item<bool>());
    }

    [Fact]
    public void Initial_weights_have_the_configured_deviation()
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        using var model = new CausalLM(new GlaConfig
        {
            VocabSize = 500,
            HiddenSize = 128,
            NumHiddenLayers = 4,
            InitializerRange = 0.03,
            RescalePrenormResidual = true,
        });
        foreach (var (name, tensor) in model.state_dict())
        {
            var expected = name.EndsWith("bias") ? 0 : name.Contains("norm") ? 1
                : name.Contains("o_proj") || name.Contains("down_proj") ? 0.03 / Math.Sqrt(8) : 0.03;
            var measured = name.Contains("norm") || name.EndsWith("bias")
                ? tensor.mean().ToDouble() : tensor.std().ToDouble();
            Assert.True(Math.Abs(measured - expected) <= 0.05 * expected, $"{name}: {measured} where {expected} is expected");
        }

        using var mamba = new CausalLM(new MambaConfig { VocabSize = 50, HiddenSize = 128, NumHiddenLayers = 1 });
        var weights = mamba.state_dict();
        Compare.Close(weights["backbone.layers.0.mixer.A_log"].exp()[5], arange(1, 17, ScalarType.Float32), 1e-6, "A");
        Assert.True(weights["backbone.layers.0.mixer.D"].eq(1).all().item<bool>());
        var steps = nn.functional.softplus(weights["backbone.layers.0.mixer.dt_proj.bias"]);
        Assert.InRange(steps.min().item<float>(), 0.99e-3f, 0.02f);
        Assert.InRange(steps.max().item<float>(), 0.02f, 0.101f);
        Assert.InRange(weights["backbone.layers.0.mixer.out_proj.weight"].abs().max().item<float>(), 0.05f, 1 / 16f);
    }

    [Fact]
    public void Is_a_module_like_any_other()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba2");
        using var sequence = nn.Sequential(("lm", model));
        Assert.Equal(model.state_dict().Keys.Select(key => $"lm.{key}").Order(), sequence.state_dict().Keys.Order());
        Assert.Equal([1, 4, TinyModels.Vocabulary], sequence.forward(TinyModels.Ids(1, 4)).shape);
    }

    [Fact]
    public void Bad_input_is_refused()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("mamba");
        using var other = new CausalLM(model.Config with { NumHiddenLayers = 1 });
        var ids = TinyModels.Ids(2, 6);
        Throws("inputIds", () => model.forward(ids.to(ScalarType.Int32)));
        Throws("inputIds", () => model.forward(ids[0]));
        Throws("inputIds", () => model.forward(ids[.., ..0]));
        Throws("inputIds", () => model.forward(ids - 61));
        Throws("inputIds", () => model.forward(ids + 61));
        Throws("attentionMask", () => model.forward(ids, ones(2, 5)));
        Throws("attentionMask", () => model.forward(ids, full([2, 6], 0.5)));
        Throws("cuSeqlens", () => model.forward(ids, ones(2, 6), tensor(new long[] { 0, 12 })));
        Throws("cuSeqlens", () => model.forward(ids, null, tensor(new long[] { 0, 6 })));
        Throws("state", () => model.forward(ids, null, null, other.NewState()));
        Throws("labels", () => model.Loss(ids, ids[.., ..5]));
        Throws("labels", () => model.Loss(ids, ids.to(ScalarType.Float32)));
        Throws("labels", () => model.Loss(ids, ids - 70));
        Throws("labels", () => model.Loss(ids, full_like(ids, -100)));
        Throws("labels", () => model.Loss(ids[.., ..1], ids[.., ..1]));
        Throws("labels", () => model.Loss(ids, ids, zeros(2, 6)));
        Throws("dtype", () => new CausalLM(model.Config, dtype: ScalarType.Float64));
        Assert.Throws<ArgumentNullException>(() => model.forward(null!));
        Assert.Equal(0, model.forward(ids, zeros(2, 6)).abs().sum().item<float>());
    }

    private static void Throws(string name, Func<object> action)
    {
        var exception = Assert.ThrowsAny<ArgumentException>(action);
        Assert.Contains(name, exception.Message);
    }
}
