using FlaSharp.Modules;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Modules;

public class ShortConvolutionTests
{
    [Theory]
    [InlineData(1, null, false)]
    [InlineData(3, "swish", true)]
    [InlineData(4, "silu", false)]
    public void Equals_a_padded_depthwise_convolution(int width, string? activation, bool bias)
    {
        using var scope = NewDisposeScope();
        using var convolution = new ShortConvolution(6, width, bias, activation);
        var parameters = convolution.state_dict();
        var x = randn(2, 11, 6);
        var padded = nn.functional.pad(x.transpose(1, 2), [width - 1, 0]);
        var expected = nn.functional.conv1d(padded, parameters["weight"], parameters.GetValueOrDefault("bias"),
            groups: 6).transpose(1, 2);
        if (activation is not null)
            expected = nn.functional.silu(expected);
        Compare.Close(convolution.forward(x), expected, 1e-6, "output");

        var (first, state) = convolution.forward(x.narrow(1, 0, 5), null, outputFinalState: true);
        var (second, _) = convolution.forward(x.narrow(1, 5, 6), state, outputFinalState: false);
        Compare.Close(cat([first, second], 1), expected, 1e-6, "output in two parts");
    }

    [Fact]
    public void Weights_begin_within_their_bound()
    {
        using var scope = NewDisposeScope();
        using var convolution = new ShortConvolution(500, 4, bias: true);
        foreach (var (_, tensor) in convolution.state_dict())
            Assert.InRange(tensor.abs().max().ToDouble(), 0.45, 0.5);
    }

    [Fact]
    public void Bad_options_are_refused()
    {
        Assert.Throws<ArgumentOutOfRangeException>(() => new ShortConvolution(0));
        Assert.Throws<ArgumentOutOfRangeException>(() => new ShortConvolution(4, 0));
        Assert.Contains("tanh", Assert.Throws<ArgumentException>(() => new ShortConvolution(4, activation: "tanh")).Message);
    }
}
