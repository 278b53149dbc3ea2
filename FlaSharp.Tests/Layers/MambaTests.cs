using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using Xunit;

namespace FlaSharp.Tests.Layers;

public class MambaTests
{
    [Fact]
    public void Equals_its_formulas()
    {
        using var layer = new Mamba(20, stateSize: 6);
        LayerCheck.Agrees(layer, NaiveLayers.Mamba);
    }

    [Fact]
    public void Equals_its_formulas_with_other_options()
    {
        using var layer = new Mamba(20, stateSize: 3, convKernel: 2, intermediateSize: 28, timeStepRank: 4,
            timeStepInit: "constant", useConvBias: false, useBias: true);
        LayerCheck.Agrees(layer, NaiveLayers.Mamba);
    }
}
