using FlaSharp.Modules;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Modules;

public class FeatureMapTests
{
    [Theory]
    [InlineData("relu", 0, 2)]
    [InlineData("sigmoid", 0.268941, 0.880797)]
    [InlineData("logsigmoid", -1.313262, -0.126928)]
    [InlineData("silu", -0.268941, 1.761594)]
    [InlineData("swish", -0.268941, 1.761594)]
    [InlineData("sqrelu", 0, 4)]
    [InlineData("gelu", -0.158655, 1.954500)]
    [InlineData("elu", 0.367879, 3)]
    public void Has_the_values_of_its_name(string name, double atMinusOne, double atTwo)
    {
        using var scope = NewDisposeScope();
        var y = FeatureMap.Named(name, "featureMap")(tensor(new[] { -1f, 2f }));
        Assert.Equal(atMinusOne, y[0].ToDouble(), 1e-5);
        Assert.Equal(atTwo, y[1].ToDouble(), 1e-5);
    }

    [Fact]
    public void An_unknown_name_lists_the_known_ones() =>
        Assert.Contains("relu, sigmoid, logsigmoid, silu, swish, sqrelu, gelu, elu",
            Assert.Throws<ArgumentException>(() => FeatureMap.Named("hedgehog", "featureMap")).Message);
}
