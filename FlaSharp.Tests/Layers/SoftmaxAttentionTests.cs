using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

public class SoftmaxAttentionTests
{
    [Theory]
    [InlineData(1, null, 10000.0, false)]
    [InlineData(2, 5, 500.0, true)]
    [InlineData(4, null, null, true)]
    public void Equals_its_formulas(int kvHeads, int? window, double? theta, bool options)
    {
        using var layer = new SoftmaxAttention(24, 4, kvHeads, options ? 10 : null, window, theta, options, options, options);
        LayerCheck.Agrees(layer, (x, w) => NaiveLayers.SoftmaxAttention(x, w, 4, kvHeads, window, theta));
    }

    [Fact]
    public void Dropout_acts_in_training_only()
    {
        using var scope = NewDisposeScope();
        using var layer = new SoftmaxAttention(24, 4, dropout: 0.5);
        var x = randn(1, 30, 24);
        Assert.False(layer.forward(x).equal(layer.forward(x)).all().ToBoolean());
        layer.eval();
        Assert.True(layer.forward(x).equal(layer.forward(x)).all().ToBoolean());
    }
}
