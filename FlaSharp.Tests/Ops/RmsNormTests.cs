using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class RmsNormTests
{
    public static TheoryData<int, int> Sizes()
    {
        var sizes = new TheoryData<int, int>();
        foreach (var rows in new[] { 1, 3, 500 })
            foreach (var size in new[] { 1, 7, 16, 50, 64, 128, 256, 1200 })
                sizes.Add(rows, size);
        return sizes;
    }

    [Theory]
    [MemberData(nameof(Sizes))]
    public void Matches_the_definition(int rows, int size)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        var eps = size == 1 ? 0.1 : 1e-5; // with D = 1 all of the gradient but eps * r^3 cancels
        Tensor[] inputs = [randn(2, rows, size) * 3, randn(size)];
        OpCheck.Agrees(i => FlaOps.RmsNorm(i[0], i[1], eps), i => NaiveNorm.Rms(i[0], i[1], eps), inputs, 1e-6, 4e-6, "kernel");
        OpCheck.Agrees(i => NormReference.RmsNorm(i[0], i[1], eps), i => NaiveNorm.Rms(i[0], i[1], eps), inputs, 1e-6, 4e-6, "composed");
        OpCheck.Agrees(i => FlaOps.RmsNorm(i[0], null, 0.1), i => NaiveNorm.Rms(i[0], null, 0.1), [inputs[0]], 1e-6, 4e-6, "no weight");
    }

    [Theory]
    [InlineData(ScalarType.Float16, false)]
    [InlineData(ScalarType.Float16, true)]
    [InlineData(ScalarType.BFloat16, false)]
    [InlineData(ScalarType.BFloat16, true)]
    public void Half_dtypes_keep_their_dtype(ScalarType dtype, bool wideWeight)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        Tensor[] inputs = [randn(3, 65, 100).to(dtype), randn(100).to(wideWeight ? ScalarType.Float32 : dtype)];
        Func<Tensor[], Tensor>[] paths = [i => FlaOps.RmsNorm(i[0], i[1]), i => NormReference.RmsNorm(i[0], i[1], 1e-5)];
        foreach (var path in paths)
        {
            Assert.Equal(dtype, path(inputs).dtype);
            OpCheck.Agrees(path, i => NaiveNorm.Rms(i[0], i[1], 1e-5), inputs, 0.004, 0.005, $"{dtype}");
        }
    }

    [Theory]
    [InlineData(ScalarType.Float32, ScalarType.Float32, 1e-6, 4e-6)]
    [InlineData(ScalarType.BFloat16, ScalarType.BFloat16, 0.005, 0.006)]
    [InlineData(ScalarType.BFloat16, ScalarType.Float32, 0.004, 0.005)]
    public void A_residual_is_added_first(ScalarType dtype, ScalarType stream, double limit, double gradientLimit)
    {
        using var scope = NewDisposeScope();
        manual_seed(5);
        Tensor[] inputs = [randn(3, 20, 48).to(dtype), randn(3, 20, 48).to(stream), randn(48)];
        var (output, sum) = FlaOps.AddRmsNorm(inputs[0], inputs[1], inputs[2]);
        Assert.Equal((dtype, stream), (output.dtype, sum.dtype));
        Assert.True(sum.equal(inputs[1] + inputs[0].to(stream)).all().ToBoolean());
        OpCheck.Agrees(i => Both(FlaOps.AddRmsNorm(i[0], i[1], i[2])),
            i => Both((NaiveNorm.Rms(i[0] + i[1], i[2], 1e-5), i[0] + i[1])), inputs, limit, gradientLimit, "both outputs");
        OpCheck.Agrees(i => FlaOps.AddRmsNorm(i[0], i[1], i[2]).output,
            i => NaiveNorm.Rms(i[0] + i[1], i[2], 1e-5), inputs, limit, gradientLimit, "the norm alone");

        static Tensor Both((Tensor output, Tensor residual) of) => cat([of.output.to(of.residual.dtype), of.residual], -1);
    }

    [Fact]
    public void Strided_inputs_and_gradients_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        Tensor[] inputs = [randn(24, 5, 40), randn(48)];
        OpCheck.Agrees(
            i => FlaOps.RmsNorm(i[0].transpose(0, 2)[.., .., ..24], i[1][TensorIndex.Slice(step: 2)]).transpose(0, 1),
            i => NaiveNorm.Rms(i[0].transpose(0, 2)[.., .., ..24], i[1][TensorIndex.Slice(step: 2)], 1e-5).transpose(0, 1),
            inputs, 1e-6, 4e-6, "strided");
    }

    [Fact]
    public void Extreme_values_give_finite_results()
    {
        using var scope = NewDisposeScope();
        Tensor[] inputs = [cat([zeros(1, 64), full(1, 64, 1e15f), full(1, 64, 1e-15f)]), ones(64)];
        OpCheck.Agrees(i => FlaOps.RmsNorm(i[0], i[1]), i => NaiveNorm.Rms(i[0], i[1], 1e-5), inputs, 1e-6, 1e-5, "extreme");
        Assert.Equal(0, FlaOps.RmsNorm(zeros(0, 64), ones(64)).numel());
    }

    [Fact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        OpCheck.Repeats(i => FlaOps.RmsNorm(i[0], i[1]), randn(3000, 64), randn(64));
    }

    [Fact]
    public void The_scale_of_a_row_does_not_matter() =>
        Gen.Select(Gen.Int[1, 9], Gen.Int[1, 70], Gen.Float[0.1f, 100f]).Sample((rows, size, factor) =>
        {
            using var scope = NewDisposeScope();
            var x = randn(rows, size);
            var y = FlaOps.RmsNorm(x, null, 0);
            Compare.Close(FlaOps.RmsNorm(x * factor, null, 0), y, 1e-6, "scaled");
            Compare.Close(y.square().mean([-1]), ones(rows), 1e-6, "mean square");
        }, iter: 100, threads: 1);

    [Fact]
    public void Only_wanted_gradients_are_made()
    {
        using var scope = NewDisposeScope();
        var (x, weight) = (randn(4, 8), ones(8).requires_grad_());
        FlaOps.RmsNorm(x, weight).sum().Backward();
        Assert.Null(x.grad);
        Assert.NotNull(weight.grad);
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var x = ones(2, 8);
        Assert.Throws<ArgumentNullException>("x", () => FlaOps.RmsNorm(null!, null));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RmsNorm(x.to(int64), null));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RmsNorm(ones(2, 0), null));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RmsNorm(tensor(1f), null));
        Assert.Throws<ArgumentException>("weight", () => FlaOps.RmsNorm(x, ones(7)));
        Assert.Throws<ArgumentException>("weight", () => FlaOps.RmsNorm(x, ones(1, 8)));
        Assert.Throws<ArgumentException>("weight", () => FlaOps.RmsNorm(x, ones(8, dtype: float16)));
        Assert.Throws<ArgumentOutOfRangeException>("eps", () => FlaOps.RmsNorm(x, null, -1));
        Assert.Throws<ArgumentNullException>("residual", () => FlaOps.AddRmsNorm(x, null!, null));
        Assert.Throws<ArgumentException>("residual", () => FlaOps.AddRmsNorm(x, ones(2, 7), null));
        Assert.Throws<ArgumentException>("residual", () => FlaOps.AddRmsNorm(x, x.to(float16), null));
    }
}
