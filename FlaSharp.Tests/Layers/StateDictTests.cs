using FlaSharp.Layers;
using FlaSharp.Modules;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>Names, shapes and dtypes of the parameters: checkpoints depend on them.</summary>
public class StateDictTests
{
    public static TheoryData<string, Func<nn.Module>, string> Approved => new()
    {
        {
            "gla", () => new GatedLinearAttention(64),
            """
            g_norm_swish_gate.weight [16]
            g_proj.weight [64, 64]
            gk_proj.0.weight [16, 64]
            gk_proj.1.bias [32]
            gk_proj.1.weight [32, 16]
            k_proj.weight [32, 64]
            o_proj.weight [64, 64]
            q_proj.weight [32, 64]
            v_proj.weight [64, 64]
            """
        },
        {
            "gla, all options", () => new GatedLinearAttention(48, numHeads: 4, expandK: 1, expandV: 2, numKvHeads: 2,
                featureMap: "relu", useShortConv: true, convSize: 3, convBias: true, gateLowRankDim: 5, fuseNorm: false),
            """
            g_norm.weight [24]
            g_proj.weight [96, 48]
            gk_proj.0.weight [5, 48]
            gk_proj.1.bias [24]
            gk_proj.1.weight [24, 5]
            k_conv1d.bias [24]
            k_conv1d.weight [24, 1, 3]
            k_proj.weight [24, 48]
            o_proj.weight [48, 96]
            q_conv1d.bias [48]
            q_conv1d.weight [48, 1, 3]
            q_proj.weight [48, 48]
            v_conv1d.bias [48]
            v_conv1d.weight [48, 1, 3]
            v_proj.weight [48, 48]
            """
        },
        {
            "gla, no gate, no weights in the norm", () => new GatedLinearAttention(8, numHeads: 8, expandK: 1,
                useOutputGate: false, elementwiseAffine: false),
            """
            gk_proj.0.weight [16, 8]
            gk_proj.1.bias [8]
            gk_proj.1.weight [8, 16]
            k_proj.weight [8, 8]
            o_proj.weight [8, 8]
            q_proj.weight [8, 8]
            v_proj.weight [8, 8]
            """
        },
        {
            "mamba", () => new Mamba(40),
            """
            A_log [80, 16]
            D [80]
            conv1d.bias [80]
            conv1d.weight [80, 1, 4]
            dt_proj.bias [80]
            dt_proj.weight [80, 3]
            in_proj.weight [160, 40]
            out_proj.weight [40, 80]
            x_proj.weight [35, 80]
            """
        },
        {
            "mamba, all options", () => new Mamba(32, stateSize: 8, convKernel: 2, intermediateSize: 48, timeStepRank: 5,
                useConvBias: false, useBias: true),
            """
            A_log [48, 8]
            D [48]
            conv1d.weight [48, 1, 2]
            dt_proj.bias [48]
            dt_proj.weight [48, 5]
            in_proj.bias [96]
            in_proj.weight [96, 32]
            out_proj.bias [32]
            out_proj.weight [32, 48]
            x_proj.weight [21, 48]
            """
        },
        {
            "mamba2", () => new Mamba2(32, headDim: 16, stateSize: 8),
            """
            A_log [4]
            D [4]
            conv1d.bias [80]
            conv1d.weight [80, 1, 4]
            dt_bias [4]
            in_proj.weight [148, 32]
            norm.weight [64]
            out_proj.weight [32, 64]
            """
        },
        {
            "mamba2, all options", () => new Mamba2(32, headDim: 16, stateSize: 8, numHeads: 4, nGroups: 2, dHasHeadDim: true,
                rmsNorm: false, useConvBias: false, useBias: true),
            """
            A_log [4]
            D [64]
            conv1d.weight [96, 1, 4]
            dt_bias [4]
            in_proj.bias [164]
            in_proj.weight [164, 32]
            out_proj.bias [32]
            out_proj.weight [32, 64]
            """
        },
        {
            "attention", () => new SoftmaxAttention(64, 4),
            """
            k_proj.weight [64, 64]
            o_proj.weight [64, 64]
            q_proj.weight [64, 64]
            v_proj.weight [64, 64]
            """
        },
        {
            "attention, all options", () => new SoftmaxAttention(64, 4, numKvHeads: 2, headDim: 8, qkvBias: true,
                outputBias: true, qkNorm: true),
            """
            k_norm.weight [8]
            k_proj.bias [16]
            k_proj.weight [16, 64]
            o_proj.bias [64]
            o_proj.weight [64, 32]
            q_norm.weight [8]
            q_proj.bias [32]
            q_proj.weight [32, 64]
            v_proj.bias [16]
            v_proj.weight [16, 64]
            """
        },
        {
            "mlp", () => new GatedMlp(64),
            """
            down_proj.weight [64, 256]
            gate_proj.weight [256, 64]
            up_proj.weight [256, 64]
            """
        },
        { "convolution", () => new ShortConvolution(6, 4, bias: true), "bias [6]\nweight [6, 1, 4]" },
    };

    [Theory]
    [MemberData(nameof(Approved))]
    public void Names_and_shapes_are_those_of_the_peers(string what, Func<nn.Module> make, string approved)
    {
        using var module = make();
        var lines = module.state_dict()
            .Select(entry => $"{entry.Key} [{string.Join(", ", entry.Value.shape)}]").Order(StringComparer.Ordinal);
        Assert.True(approved.ReplaceLineEndings("\n").Split('\n').SequenceEqual(lines), $"{what}:\n{string.Join("\n", lines)}");
        Assert.Equal(module.state_dict().Count, module.parameters().Count());
    }

    [Fact]
    public void Parameters_outlive_the_scope_in_which_the_layer_was_made()
    {
        foreach (var (what, make) in Layers)
        {
            SequenceLayer layer;
            using (NewDisposeScope())
                layer = make(null);
            foreach (var (name, parameter) in layer.named_parameters())
            {
                Assert.False(parameter.IsInvalid, $"{what}: {name}");
                Assert.True(parameter.requires_grad);
            }
            layer.Dispose();
        }
    }

    [Fact]
    public void Decays_and_step_sizes_stay_float32()
    {
        string[] kept = ["A_log", "D", "dt_bias", "dt_proj.bias", "gk_proj.1.weight", "gk_proj.1.bias"];
        foreach (var (what, make) in Layers)
            foreach (var convert in new Action<SequenceLayer>[]
                { l => l.to(bfloat16), l => l.half(), l => l.to(CPU, bfloat16), l => nn.Sequential(l).to(bfloat16) })
            {
                using var scope = NewDisposeScope();
                using var layer = make(null);
                var before = layer.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value.detach().clone());
                convert(layer);
                var keptNames = layer.named_parameters().Where(p => p.parameter.dtype == float32)
                    .Select(p => p.name).Order().ToArray();
                Assert.Equal(before.Keys.Where(kept.Contains).Order(), keptNames);
                Assert.All(layer.parameters(), parameter => Assert.True(parameter.requires_grad));
                Assert.All(keptNames, name => Assert.True(layer.state_dict()[name].equal(before[name]).all().ToBoolean(),
                    $"{what}: {name}"));

                layer.to(float32);
                Assert.All(layer.parameters(), parameter => Assert.Equal(float32, parameter.dtype));
                Assert.Equal(before.Keys.Order(), layer.state_dict().Keys.Order());
                foreach (var (name, value) in before)
                    Assert.True(layer.state_dict()[name].sub(value).abs().max().ToDouble() <= (kept.Contains(name) ? 0 : 0.01),
                        $"{what}: {name}");
            }
    }

    [Fact]
    public void A_layer_made_in_bfloat16_keeps_them_too_unless_told_otherwise()
    {
        using var mamba = new Mamba(16, dtype: bfloat16);
        Assert.Equal(["A_log", "D", "dt_proj.bias"], Float32(mamba));
        using var mamba2 = new Mamba2(16, headDim: 8, dtype: bfloat16);
        Assert.Equal(["A_log", "D", "dt_bias"], Float32(mamba2));
        using var gla = new GatedLinearAttention(16, dtype: bfloat16);
        Assert.Equal(["gk_proj.1.bias", "gk_proj.1.weight"], Float32(gla));

        foreach (var (_, make) in Layers.Where(l => l.what != "attention"))
        {
            using var layer = make(false);
            layer.to(bfloat16);
            Assert.Empty(Float32(layer));
        }

        static IEnumerable<string> Float32(SequenceLayer layer) =>
            layer.named_parameters().Where(p => p.parameter.dtype == float32).Select(p => p.name).Order(StringComparer.Ordinal);
    }

    [Fact]
    public void Parameters_begin_as_the_papers_have_them()
    {
        using var scope = NewDisposeScope();
        using var mamba = new Mamba(32, timeStepMin: 0.01, timeStepMax: 0.05);
        var parameters = mamba.state_dict();
        Assert.True(parameters["A_log"][3].exp().allclose(arange(1, 17, float32)));
        Assert.True(parameters["D"].eq(1).all().ToBoolean());
        var steps = nn.functional.softplus(parameters["dt_proj.bias"]);
        Assert.InRange(steps.min().ToDouble(), 0.0099, 0.05);
        Assert.InRange(steps.max().ToDouble(), 0.01, 0.0501);
        Assert.InRange(parameters["dt_proj.weight"].abs().max().ToDouble(), 0.1, Math.Sqrt(0.5));

        using var mamba2 = new Mamba2(128, headDim: 4, aInitRange: (2, 3));
        parameters = mamba2.state_dict();
        Assert.InRange(parameters["A_log"].exp().min().ToDouble(), 1.999, 2.5);
        Assert.InRange(parameters["A_log"].exp().max().ToDouble(), 2.5, 3.001);
        Assert.InRange(nn.functional.softplus(parameters["dt_bias"]).max().ToDouble(), 0.02, 0.1001);
    }

    [Fact]
    public void Reset_draws_all_parameters_anew()
    {
        foreach (var (what, make) in Layers)
        {
            using var scope = NewDisposeScope();
            using var layer = make(null);
            using (no_grad())
                foreach (var parameter in layer.parameters())
                    parameter.fill_(77);
            layer.ResetParameters();
            Assert.All(layer.named_parameters(), p => Assert.False(p.parameter.eq(77).any().ToBoolean(), $"{what}: {p.name}"));
        }
    }

    private static IEnumerable<(string what, Func<bool?, SequenceLayer> make)> Layers =>
    [
        ("gla", keep => new GatedLinearAttention(16, 2, useShortConv: true, convBias: true, keepFp32Parameters: keep ?? true)),
        ("mamba", keep => new Mamba(16, keepFp32Parameters: keep ?? true)),
        ("mamba2", keep => new Mamba2(16, headDim: 8, keepFp32Parameters: keep ?? true)),
        ("attention", _ => new SoftmaxAttention(16, 2, qkvBias: true, qkNorm: true)),
    ];
}
