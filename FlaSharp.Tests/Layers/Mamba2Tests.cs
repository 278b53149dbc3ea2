using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

public class Mamba2Tests
{
    [Theory]
    [InlineData(1, true, false, false)]
    [InlineData(2, true, false, true)]
    [InlineData(2, true, true, false)]
    [InlineData(4, false, false, true)]
    public void Equals_its_formulas(int groups, bool rmsNorm, bool normBeforeGate, bool dHasHeadDim)
    {
        using var layer = new Mamba2(20, headDim: 10, stateSize: 6, nGroups: groups, rmsNorm: rmsNorm,
            normBeforeGate: normBeforeGate, dHasHeadDim: dHasHeadDim);
        LayerCheck.Agrees(layer, (x, w) => NaiveLayers.Mamba2(x, w, 10, groups, 6, null, normBeforeGate));
    }

    [Fact]
    public void A_group_of_heads_is_normed_alone()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = new Mamba2(20, headDim: 10, stateSize: 6, nGroups: 2);
        layer.get_parameter("out_proj.weight")!.copy_(eye(20, 40)); // the first group's channels, as they leave the norm
        var x = randn(2, 9, 20);
        var before = layer.forward(x);

        var gates = layer.get_parameter("in_proj.weight")!.narrow(0, 0, 40); // z comes first
        gates.narrow(0, 20, 20).normal_();
        Assert.Equal(before, layer.forward(x));
        gates.narrow(0, 0, 10).normal_();
        Assert.NotEqual(before.narrow(-1, 10, 10), layer.forward(x).narrow(-1, 10, 10)); // of one group
    }

    [Fact]
    public void Step_sizes_stay_within_their_limit()
    {
        var limit = (0.01, 0.02);
        using var layer = new Mamba2(20, headDim: 10, stateSize: 6, timeStepLimit: limit, useConvBias: false, useBias: true);
        LayerCheck.Agrees(layer, (x, w) => NaiveLayers.Mamba2(x, w, 10, 1, 6, limit, false));
    }
}
