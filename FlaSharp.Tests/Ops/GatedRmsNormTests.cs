using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class GatedRmsNormTests
{
    public static TheoryData<string, bool> Options() => new()
    {
        { "swish", true }, { "swish", false }, { "silu", true }, { "sigmoid", true }, { "sigmoid", false },
    };

    [Theory]
    [MemberData(nameof(Options))]
    public void Matches_the_definition(string activation, bool normBeforeGate)
    {
        manual_seed(1);
        foreach (var rows in new[] { 1, 3, 500 })
            foreach (var (size, group) in new[] { (1, 1), (7, 7), (50, 10), (64, 64), (64, 16), (100, 50), (128, 32), (1200, 600) })
            {
                using var scope = NewDisposeScope();
                var eps = size == 1 ? 0.1 : 1e-5; // with one value all of the gradient but eps * r^3 cancels
                Tensor[] inputs = [randn(2, rows, size) * 2, randn(2, rows, size) * 2, randn(size)];
                var what = $"{rows} rows of {size} in groups of {group}";
                OpCheck.Agrees(
                    i => FlaOps.GatedRmsNorm(i[0], i[1], i[2], eps, activation, normBeforeGate, group),
                    i => NaiveNorm.Gated(i[0], i[1], i[2], eps, activation, normBeforeGate, group), inputs, 1e-6, 1e-5, what);
                OpCheck.Agrees(
                    i => NormReference.GatedRmsNorm(i[0], i[1], i[2], eps, activation != "sigmoid", normBeforeGate, group),
                    i => NaiveNorm.Gated(i[0], i[1], i[2], eps, activation, normBeforeGate, group), inputs, 1e-6, 1e-5, what + ", composed");
                OpCheck.Agrees(
                    i => FlaOps.GatedRmsNorm(i[0], i[1], null, 1e-2, activation, normBeforeGate, group),
                    i => NaiveNorm.Gated(i[0], i[1], null, 1e-2, activation, normBeforeGate, group), inputs[..2], 1e-6, 1e-5, what + ", no weight");
            }
    }

    [Theory]
    [InlineData(ScalarType.Float16, true)]
    [InlineData(ScalarType.Float16, false)]
    [InlineData(ScalarType.BFloat16, true)]
    [InlineData(ScalarType.BFloat16, false)]
    public void Half_dtypes_keep_their_dtype(ScalarType dtype, bool normBeforeGate)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        foreach (var weightDtype in new[] { dtype, ScalarType.Float32 })
        {
            Tensor[] inputs = [randn(3, 65, 96).to(dtype), randn(3, 65, 96).to(dtype), randn(96).to(weightDtype)];
            Func<Tensor[], Tensor>[] paths =
            [
                i => FlaOps.GatedRmsNorm(i[0], i[1], i[2], normBeforeGate: normBeforeGate, groupSize: 48),
                i => NormReference.GatedRmsNorm(i[0], i[1], i[2], 1e-5, true, normBeforeGate, 48),
            ];
            foreach (var path in paths)
            {
                Assert.Equal(dtype, path(inputs).dtype);
                OpCheck.Agrees(path, i => NaiveNorm.Gated(i[0], i[1], i[2], 1e-5, "swish", normBeforeGate, 48),
                    inputs, 0.004, 0.005, $"{dtype}");
            }
        }
    }

    [Fact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        OpCheck.Repeats(i => FlaOps.GatedRmsNorm(i[0], i[1], i[2]), randn(3000, 64), randn(3000, 64), randn(64));
        OpCheck.Repeats(i => FlaOps.GatedRmsNorm(i[0], i[1], i[2], normBeforeGate: false, groupSize: 8),
            randn(3000, 64), randn(3000, 64), randn(64));
    }

    [Fact]
    public void Strided_inputs_and_far_gates_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(4);
        Tensor[] inputs = [randn(5, 9, 80), randn(5, 9, 80) * 40];
        OpCheck.Agrees(
            i => FlaOps.GatedRmsNorm(i[0].transpose(0, 1)[.., .., 8..72], i[1].transpose(0, 1)[.., .., 8..72], null),
            i => NaiveNorm.Gated(i[0].transpose(0, 1)[.., .., 8..72], i[1].transpose(0, 1)[.., .., 8..72], null, 1e-5, "swish", true, 64),
            inputs, 1e-6, 1e-5, "strided");
    }

    [Fact]
    public void Groups_do_not_see_each_other() =>
        Gen.Select(Gen.Int[1, 5], Gen.Int[1, 40], Gen.Int[2, 4], Gen.Bool).Sample((rows, group, count, before) =>
        {
            using var scope = NewDisposeScope();
            var (x, gate, weight) = (randn(rows, group * count), randn(rows, group * count), randn(group * count));
            var whole = FlaOps.GatedRmsNorm(x, gate, weight, normBeforeGate: before, groupSize: group);
            for (var i = 0; i < count; i++)
            {
                Tensor Part(Tensor tensor) => tensor.narrow(-1, i * group, group);
                var part = FlaOps.GatedRmsNorm(Part(x), Part(gate), Part(weight), normBeforeGate: before);
                Assert.True(part.equal(Part(whole)).all().ToBoolean());
            }
        }, iter: 100, threads: 1);

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var x = ones(2, 8);
        Assert.Throws<ArgumentNullException>("x", () => FlaOps.GatedRmsNorm(null!, x, null));
        Assert.Throws<ArgumentNullException>("gate", () => FlaOps.GatedRmsNorm(x, null!, null));
        Assert.Throws<ArgumentException>("gate", () => FlaOps.GatedRmsNorm(x, ones(2, 7), null));
        Assert.Throws<ArgumentException>("gate", () => FlaOps.GatedRmsNorm(x, x.to(float16), null));
        Assert.Throws<ArgumentException>("weight", () => FlaOps.GatedRmsNorm(x, x, ones(7)));
        Assert.Throws<ArgumentException>("groupSize", () => FlaOps.GatedRmsNorm(x, x, null, groupSize: 3));
        Assert.Throws<ArgumentException>("groupSize", () => FlaOps.GatedRmsNorm(x, x, null, groupSize: 0));
        Assert.Throws<ArgumentException>("activation", () => FlaOps.GatedRmsNorm(x, x, null, activation: "relu"));
    }
}
