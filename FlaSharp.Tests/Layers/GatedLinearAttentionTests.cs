using System.Text.Json;
using FlaSharp.IO;
using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

public class GatedLinearAttentionTests
{
    [Theory]
    [InlineData("basic")]
    [InlineData("gqa_conv_relu")]
    [InlineData("nogate_clamp")]
    [InlineData("smallhead")]
    public void Outputs_and_gradients_are_those_of_flash_linear_attention(string file)
    {
        using var scope = NewDisposeScope();
        var path = Path.Combine(AppContext.BaseDirectory, "Golden", $"gla_layer_{file}.safetensors");
        var golden = SafeTensors.Load(path);
        var config = JsonDocument.Parse(SafeTensors.LoadMetadata(path)["config"]).RootElement;

        foreach (var mode in Enum.GetValues<LinearAttentionMode>())
        {
            using var layer = Make(config, mode);
            layer.load_state_dict(Prefixed(golden, "weight."));
            var x = golden["x"].clone().requires_grad_();
            var y = layer.forward(x);
            Compare.Close(y, golden["y"], 1e-4, $"{mode}: output");
            y.Backward(golden["dy"]);
            Compare.Close(x.grad!, golden["dx"], 1e-3, $"{mode}: gradient of x");
            foreach (var (name, gradient) in Prefixed(golden, "grad."))
                Compare.Close(layer.get_parameter(name)!.grad!, gradient, 1e-3, $"{mode}: gradient of {name}");
        }
    }

    [Fact]
    public void Modes_agree()
    {
        using var scope = NewDisposeScope();
        var x = randn(2, 150, 32);
        Tensor[]? first = null;
        foreach (var mode in Enum.GetValues<LinearAttentionMode>())
        {
            manual_seed(5);
            using var layer = new GatedLinearAttention(32, numHeads: 2, mode: mode, useShortConv: true);
            Assert.Equal(mode, layer.Mode);
            var leaf = x.clone().requires_grad_();
            using var state = new LayerState();
            var y = layer.forward(leaf, null, null, state);
            y.square().sum().Backward();
            Tensor[] results = [y, state["recurrent"]!.detach().clone(), leaf.grad!,
                .. layer.parameters().Select(p => p.grad!.clone())];
            first ??= results;
            for (var i = 0; i < results.Length; i++)
                Compare.Close(results[i], first[i], 2e-5, $"{mode}: result {i}");
        }
    }

    [Fact]
    public void Norm_and_gate_apart_give_what_they_give_together()
    {
        using var scope = NewDisposeScope();
        using var fused = new GatedLinearAttention(24, numHeads: 2);
        using var apart = new GatedLinearAttention(24, numHeads: 2, fuseNorm: false);
        apart.load_state_dict(fused.state_dict().ToDictionary(
            entry => entry.Key.Replace("_swish_gate", ""), entry => entry.Value));
        var x = randn(2, 9, 24);
        Compare.Close(apart.forward(x), fused.forward(x), 1e-6, "output");
    }

    [Theory]
    [InlineData("sigmoid")]
    [InlineData("silu")]
    [InlineData("gelu")]
    [InlineData("sqrelu")]
    public void Gates_and_feature_maps_of_every_name_train(string name)
    {
        using var scope = NewDisposeScope();
        // Heads of one channel.
        using var layer = new GatedLinearAttention(8, numHeads: 8, expandK: 1, featureMap: name, gateFn: name);
        layer.forward(randn(1, 20, 8)).sum().Backward();
        Assert.All(layer.parameters(), p => Assert.True(p.grad!.isfinite().all().ToBoolean()));
    }

    [Fact]
    public void A_decoding_step_updates_its_state_in_place()
    {
        using var scope = NewDisposeScope();
        using var layer = new GatedLinearAttention(24, numHeads: 2);
        using var state = new LayerState();
        var x = randn(2, 5, 24);
        layer.forward(x, null, null, state); // its graph may still be walked
        var recorded = state["recurrent"]!;
        using (no_grad())
        {
            layer.forward(x, null, null, state);
            var first = state["recurrent"]!;
            Assert.NotSame(recorded, first);
            layer.forward(x, null, null, state);
            Assert.Same(first, state["recurrent"]);
            Assert.False(first.IsInvalid);
        }
        state.Detach();
        var kept = state["recurrent"]!;
        layer.forward(x, null, null, state); // recorded again
        Assert.NotSame(kept, state["recurrent"]);
    }

    private static GatedLinearAttention Make(JsonElement config, LinearAttentionMode mode)
    {
        return new GatedLinearAttention((long)Number("hidden_size", 0), (int)Number("num_heads", 4), Number("expand_k", 0.5),
            Number("expand_v", 1),
            mode, config.TryGetProperty("num_kv_heads", out var heads) ? heads.GetInt32() : null,
            config.TryGetProperty("feature_map", out var map) ? map.GetString() : null, Flag("use_short_conv", false),
            (int)Number("conv_size", 4),
            useOutputGate: Flag("use_output_gate", true),
            clampMin: config.TryGetProperty("clamp_min", out var clamp) ? clamp.GetDouble() : null);

        double Number(string name, double otherwise) =>
            config.TryGetProperty(name, out var value) ? value.GetDouble() : otherwise;
        bool Flag(string name, bool otherwise) => config.TryGetProperty(name, out var value) ? value.GetBoolean() : otherwise;
    }

    private static Dictionary<string, Tensor> Prefixed(Dictionary<string, Tensor> tensors, string prefix) =>
        tensors.Where(entry => entry.Key.StartsWith(prefix, StringComparison.Ordinal))
            .ToDictionary(entry => entry.Key[prefix.Length..], entry => entry.Value);
}
