using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Modules;

public sealed class NormModuleTests
{
    [Fact]
    public void Names_in_the_state_dict()
    {
        using var norm = new RMSNorm(8);
        using var gated = new GatedRMSNorm(8);
        using var plain = new RMSNorm(8, elementwiseAffine: false);
        using var plainGated = new GatedRMSNorm(8, elementwiseAffine: false);
        Assert.Equal(["weight"], norm.state_dict().Keys);
        Assert.Equal(["weight"], gated.state_dict().Keys);
        Assert.Empty(plain.state_dict());
        Assert.Empty(plainGated.state_dict());
        Assert.Null(plain.Weight);
    }

    [Fact]
    public void A_residual_stream_is_added_to()
    {
        using var scope = NewDisposeScope();
        using var norm = new RMSNorm(8, eps: 0, dtype: bfloat16);
        var (output, stream) = norm.forward(full(2, 8, 3f, bfloat16), full(2, 8, 1f, float32));
        Assert.Equal((ScalarType.BFloat16, ScalarType.Float32), (output.dtype, stream.dtype));
        Assert.Equal(1f, output[0, 0].ToSingle());
        Assert.Equal(4f, stream[1, 7].ToSingle());
        Assert.Contains("8", Assert.Throws<ArgumentException>(() => norm.forward(ones(2, 7), ones(2, 7))).Message);
    }

    [Fact]
    public void Conversion_and_loading_reach_the_weight_in_use()
    {
        using var scope = NewDisposeScope();
        using var norm = new RMSNorm(8);
        using var gated = new GatedRMSNorm(8);
        norm.to(bfloat16);
        gated.to(bfloat16);
        Assert.Equal(ScalarType.BFloat16, norm.Weight!.dtype);
        Assert.Equal(ScalarType.BFloat16, norm.forward(ones(2, 8, dtype: bfloat16)).dtype);
        Assert.Equal(ScalarType.BFloat16, gated.forward(ones(2, 8, dtype: bfloat16), ones(2, 8, dtype: bfloat16)).dtype);

        norm.to(float32);
        norm.load_state_dict(new Dictionary<string, Tensor> { ["weight"] = full(8, 3f) });
        Assert.Equal(3f, norm.forward(ones(1, 8))[0, 0].ToSingle(), 4);
        norm.forward(ones(1, 8)).sum().Backward();
        Assert.Equal(1f, norm.parameters().Single().grad![0].ToSingle(), 4);
    }

    [Fact]
    public void Forward_is_the_operation_with_the_options()
    {
        using var scope = NewDisposeScope();
        var (x, gate) = (randn(3, 4, 12), randn(3, 4, 12));
        using var norm = new RMSNorm(12, eps: 0.1);
        using var gated = new GatedRMSNorm(12, 0.1, activation: "sigmoid", normBeforeGate: false, groupSize: 4);
        Assert.True(norm.forward(x).equal(FlaOps.RmsNorm(x, ones(12), 0.1)).all().ToBoolean());
        Assert.True(gated.forward(x, gate)
            .equal(FlaOps.GatedRmsNorm(x, gate, ones(12), 0.1, "sigmoid", false, 4)).all().ToBoolean());
    }

    [Fact]
    public void Bad_arguments_are_named()
    {
        using var scope = NewDisposeScope();
        Assert.Throws<ArgumentOutOfRangeException>("size", () => new RMSNorm(0));
        Assert.Throws<ArgumentOutOfRangeException>("eps", () => new RMSNorm(4, -1));
        Assert.Throws<ArgumentException>("activation", () => new GatedRMSNorm(4, activation: "tanh"));
        Assert.Throws<ArgumentException>("groupSize", () => new GatedRMSNorm(4, groupSize: 3));
        using var plain = new RMSNorm(8, elementwiseAffine: false);
        Assert.Throws<ArgumentException>("x", () => plain.forward(ones(2, 7)));
    }
}
