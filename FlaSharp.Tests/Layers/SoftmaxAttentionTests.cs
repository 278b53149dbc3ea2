using FlaSharp.Layers;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
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

    [Theory]
    [InlineData(null)]
    [InlineData(5)]
    public void Rows_of_different_lengths_go_on_like_one_pass(int? window)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = new SoftmaxAttention(24, 4, 2, window: window);
        int[] lengths = [9, 1, 30];
        var x = randn(3, 130, 24);
        var expected = layer.forward(x);
        using var state = new LayerState();
        var packed = cat([.. lengths.Select((length, row) => x[row].narrow(0, 0, length))]).unsqueeze(0);
        var prefill = layer.forward(packed, null, tensor(new long[] { 0, 9, 10, 40 }), state);
        Compare.Close(prefill[0].narrow(0, 10, 30), expected[2].narrow(0, 0, 30), 1e-5, "prefill");
        for (var step = 0; step < 100; step++)
        {
            var tokens = stack([.. lengths.Select((length, row) => x[row].narrow(0, length + step, 1))]);
            var y = layer.forward(tokens, null, null, state);
            for (var row = 0; row < 3; row++)
                Compare.Close(y[row], expected[row].narrow(0, lengths[row] + step, 1), 1e-5, $"row {row}, step {step}");
        }
    }
}
