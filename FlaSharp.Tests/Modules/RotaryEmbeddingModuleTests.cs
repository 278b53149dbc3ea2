using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Modules;

public sealed class RotaryEmbeddingModuleTests
{
    [Fact]
    public void Is_the_operation_at_every_offset()
    {
        using var scope = NewDisposeScope();
        using var rotary = new RotaryEmbedding(16, 500.0);
        var x = randn(2, 5, 3, 24);
        foreach (var offset in new long[] { 0, 3, 700, 65_533, 1_000_000 })
        {
            var positions = arange(offset, offset + 5);
            var expected = FlaOps.RotaryEmbedding(x, positions, 500.0, rotaryDim: 16);
            Assert.True(rotary.forward(x, offset).allclose(expected, 0, 1e-6));
            Assert.True(rotary.forward(x, positions).allclose(expected, 0, 1e-6));
            Assert.True(rotary.forward(x, positions.expand(2, 5)).allclose(expected, 0, 1e-6));
        }
        Assert.True(rotary.forward(x, -arange(5)).allclose(FlaOps.RotaryEmbedding(x, -arange(5), 500.0, rotaryDim: 16), 0, 1e-6));
    }

    [Fact]
    public void Nothing_is_registered()
    {
        using var scope = NewDisposeScope();
        using var rotary = new RotaryEmbedding(8);
        rotary.forward(ones(1, 4, 1, 8));
        rotary.to(bfloat16);
        Assert.Empty(rotary.state_dict());
        Assert.Empty(rotary.named_buffers());
        Assert.Equal(ScalarType.BFloat16, rotary.forward(ones(1, 4, 1, 8, dtype: bfloat16), 2).dtype);
    }

    [Fact]
    public void Tables_outlive_the_callers_scope_and_inference_mode()
    {
        using var rotary = new RotaryEmbedding(8);
        using (NewDisposeScope())
        using (inference_mode())
            rotary.forward(ones(1, 4, 1, 8));
        using var scope = NewDisposeScope();
        var x = ones(1, 4, 1, 8).requires_grad_();
        rotary.forward(x).sum().Backward();
        Assert.Equal(1f, x.grad![0, 0, 0, 0].ToSingle());
    }

    [Fact]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Assert.Throws<ArgumentException>("rotaryDim", () => new RotaryEmbedding(7));
        Assert.Throws<ArgumentException>("theta", () => new RotaryEmbedding(8, double.NaN));
        using var rotary = new RotaryEmbedding(8);
        Assert.Throws<ArgumentException>("x", () => rotary.forward(ones(1, 4, 1, 6)));
        Assert.Throws<ArgumentOutOfRangeException>("offset", () => rotary.forward(ones(1, 4, 1, 8), -1));
        Assert.Throws<ArgumentException>("positions", () => rotary.forward(ones(1, 4, 1, 8), arange(3)));
    }
}
