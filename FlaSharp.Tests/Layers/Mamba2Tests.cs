using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using Xunit;

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
    public void Step_sizes_stay_within_their_limit()
    {
        var limit = (0.01, 0.02);
        using var layer = new Mamba2(20, headDim: 10, stateSize: 6, timeStepLimit: limit, useConvBias: false, useBias: true);
        LayerCheck.Agrees(layer, (x, w) => NaiveLayers.Mamba2(x, w, 10, 1, 6, limit, false));
    }
}
