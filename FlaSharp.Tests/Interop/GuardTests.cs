using FlaSharp.Layers;
using FlaSharp.Models;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Interop;

public sealed class GuardTests
{
    [Theory]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Operations_refuse_tensors_of_nothing_but_NaN(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var good = randn(1, 4, 2, 8).to(dtype);
        var bad = full([1, 4, 2, 8], float.NaN).to(dtype);
        Names("v", () => FlaOps.Gla(good, good, bad, -good.abs()));
        Names("k", () => FlaOps.Attention(good, bad, good));
        Names("x", () => FlaOps.RmsNorm(bad, null));
        Names("x", () => FlaOps.RotaryEmbedding(bad, arange(4)));
        var half = good.clone();
        half[0, 0] = float.NaN; // some numbers are left: computed, and seen in the result
        Assert.True(FlaOps.RmsNorm(half, null).isnan().any().ToBoolean());
    }

    [Fact]
    public void Layers_and_checkpoints_refuse_them_too()
    {
        using var scope = NewDisposeScope();
        using var layer = new GatedLinearAttention(16, 2);
        Names("x", () => layer.forward(full([1, 4, 16], float.NaN)));

        using var model = new CausalLM(new GlaConfig { VocabSize = 8, HiddenSize = 16, NumHiddenLayers = 1, NumHeads = 2 });
        var before = model.state_dict().ToDictionary(pair => pair.Key, pair => pair.Value.detach().clone());
        var weights = before.ToDictionary(pair => pair.Key, pair => pair.Value + 1);
        weights["model.norm.weight"] = full([16], float.NaN);
        Names("model.norm.weight", () => model.LoadWeights(weights));
        Assert.All(model.state_dict(), pair => Assert.True(pair.Value.equal(before[pair.Key]).all().ToBoolean()));
    }

    private static void Names(string argument, Action call)
    {
        var thrown = Assert.Throws<ArgumentException>(call);
        Assert.Equal(argument, thrown.ParamName);
        Assert.Contains("NaN", thrown.Message, StringComparison.Ordinal);
    }
}
