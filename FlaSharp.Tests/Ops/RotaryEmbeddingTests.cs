using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class RotaryEmbeddingTests
{
    private static Tensor Composed(Tensor x, Tensor positions, double theta, bool interleaved, long rotaryDim)
    {
        var (cos, sin) = RotaryAngles.Of(positions, theta, rotaryDim);
        return RotaryReference.Rotate(x, cos, sin, interleaved);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Matches_the_definition(bool interleaved)
    {
        manual_seed(1);
        foreach (var (batch, time, heads, size, dim) in new[]
            { (1, 1, 1, 2, 2), (2, 17, 3, 7, 6), (2, 9, 2, 60, 60), (3, 33, 4, 64, 64), (1, 20, 2, 128, 128), (2, 11, 2, 100, 34) })
        {
            using var scope = NewDisposeScope();
            Tensor[] positions = [arange(time), randint(0, 5000, [batch, time]), arange(time).to(int32) + 100_000, -arange(time)];
            foreach (var at in positions)
            {
                Tensor[] inputs = [randn(batch, time, heads, size)];
                Tensor Naive(Tensor[] i) => NaiveRotary.Rotate(i[0], at, 500.0, interleaved, dim);
                OpCheck.Agrees(i => FlaOps.RotaryEmbedding(i[0], at, 500.0, interleaved, dim), Naive, inputs, 1e-6, 1e-6, "kernel");
                OpCheck.Agrees(i => Composed(i[0], at, 500.0, interleaved, dim), Naive, inputs, 1e-6, 1e-6, "composed");
            }
        }
    }

    [Fact]
    public void A_far_position_is_exact()
    {
        using var scope = NewDisposeScope();
        var (x, at) = (randn(1, 3, 1, 64), tensor(new long[] { 1_000_003, 8_388_611, 123_456_789 }));
        Compare.Close(FlaOps.RotaryEmbedding(x, at), NaiveRotary.Rotate(x.to(float64), at, 10000, false, 64), 1e-6, "far");
    }

    [Theory]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Half_dtypes_keep_their_dtype(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        var at = arange(50);
        Tensor[] inputs = [randn(2, 50, 3, 64).to(dtype)];
        Tensor Naive(Tensor[] i) => NaiveRotary.Rotate(i[0], at, 10000, false, 32);
        Assert.Equal(dtype, FlaOps.RotaryEmbedding(inputs[0], at).dtype);
        OpCheck.Agrees(i => FlaOps.RotaryEmbedding(i[0], at, rotaryDim: 32), Naive, inputs, 0.004, 0.005, $"{dtype}");
        OpCheck.Agrees(i => Composed(i[0], at, 10000, false, 32), Naive, inputs, 0.004, 0.005, $"{dtype}, composed");
    }

    [Fact]
    public void Strided_inputs_and_gradients_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        var at = arange(6);
        OpCheck.Agrees( // the query part of a fused projection, and the layout that attention wants
            i => FlaOps.RotaryEmbedding(i[0].unflatten(2, 4, 24)[.., .., .., 8..24], at).transpose(1, 2),
            i => NaiveRotary.Rotate(i[0].unflatten(2, 4, 24)[.., .., .., 8..24], at, 10000, false, 16).transpose(1, 2),
            [randn(2, 6, 96)], 1e-6, 1e-6, "slice");
        OpCheck.Agrees(
            i => FlaOps.RotaryEmbedding(i[0].transpose(1, 3), at),
            i => NaiveRotary.Rotate(i[0].transpose(1, 3), at, 10000, false, 16),
            [randn(2, 16, 3, 6)], 1e-6, 1e-6, "features apart");
    }

    [Fact]
    public void Products_depend_on_the_distance_alone() =>
        Gen.Select(Gen.Int[0, 1000], Gen.Int[0, 1000], Gen.Int[0, 1000], Gen.Bool).Sample((i, j, shift, interleaved) =>
        {
            using var scope = NewDisposeScope();
            var (q, k) = (randn(1, 1, 2, 32), randn(1, 1, 2, 32));
            Tensor Product(long a, long b) =>
                (FlaOps.RotaryEmbedding(q, tensor(new[] { a }), interleaved: interleaved)
                * FlaOps.RotaryEmbedding(k, tensor(new[] { b }), interleaved: interleaved)).sum(-1);
            Assert.True((Product(i, j) - Product(i + shift, j + shift)).abs().max().ToSingle() < 1e-4);
        }, iter: 100, threads: 1);

    [Fact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        OpCheck.Repeats(i => FlaOps.RotaryEmbedding(i[0], arange(500)), randn(3, 500, 2, 64));
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var (x, at) = (ones(2, 5, 3, 8), arange(5));
        Assert.Throws<ArgumentNullException>("x", () => FlaOps.RotaryEmbedding(null!, at));
        Assert.Throws<ArgumentNullException>("positions", () => FlaOps.RotaryEmbedding(x, null!));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RotaryEmbedding(x[0], at));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RotaryEmbedding(x.to(float64), at));
        Assert.Throws<ArgumentException>("x", () => FlaOps.RotaryEmbedding(ones(2, 0, 3, 8), arange(0)));
        Assert.Throws<ArgumentException>("positions", () => FlaOps.RotaryEmbedding(x, at.to(float32)));
        Assert.Throws<ArgumentException>("positions", () => FlaOps.RotaryEmbedding(x, arange(4)));
        Assert.Throws<ArgumentException>("positions", () => FlaOps.RotaryEmbedding(x, arange(5).expand(3, 5)));
        Assert.Throws<ArgumentException>("rotaryDim", () => FlaOps.RotaryEmbedding(x, at, rotaryDim: 3));
        Assert.Throws<ArgumentException>("rotaryDim", () => FlaOps.RotaryEmbedding(x, at, rotaryDim: 10));
        Assert.Throws<ArgumentException>("rotaryDim", () => FlaOps.RotaryEmbedding(ones(1, 5, 1, 7), at));
        Assert.Throws<ArgumentException>("theta", () => FlaOps.RotaryEmbedding(x, at, theta: 0));
    }
}
