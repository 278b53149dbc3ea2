using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class SwiGluTests
{
    private static Tensor Naive(Tensor[] inputs) => inputs[0] / (1 + exp(-inputs[0])) * inputs[1];

    [Fact]
    public void Matches_the_definition() =>
        Gen.Select(Gen.Int[1, 4], Gen.Int[1, 300], Gen.Int[1, 70]).Sample((a, b, c) =>
        {
            using var scope = NewDisposeScope();
            Tensor[] inputs = [randn(a, b, c) * 3, randn(a, b, c)];
            OpCheck.Agrees(i => FlaOps.SwiGlu(i[0], i[1]), Naive, inputs, 1e-6, 1e-6, "kernel");
            OpCheck.Agrees(i => FlaOps.SwiGluReference(i[0], i[1]), Naive, inputs, 1e-6, 1e-6, "composed");
        }, iter: 50, threads: 1);

    [Theory]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Half_dtypes_keep_their_dtype(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        manual_seed(2);
        Tensor[] inputs = [randn(100, 31).to(dtype), randn(100, 31).to(dtype)];
        Assert.Equal(dtype, FlaOps.SwiGlu(inputs[0], inputs[1]).dtype);
        OpCheck.Agrees(i => FlaOps.SwiGlu(i[0], i[1]), Naive, inputs, 0.004, 0.005, $"{dtype}");
        OpCheck.Agrees(i => FlaOps.SwiGluReference(i[0], i[1]), Naive, inputs, 0.004, 0.005, $"{dtype}, composed");
    }

    [Fact]
    public void Halves_of_one_projection_and_far_gates_count()
    {
        using var scope = NewDisposeScope();
        manual_seed(3);
        OpCheck.Agrees(i => FlaOps.SwiGlu(i[0][.., ..50], i[0][.., 50..]), i => Naive([i[0][.., ..50], i[0][.., 50..]]),
            [randn(40, 100) * 60], 1e-6, 1e-6, "halves");
    }

    [Fact]
    public void Repeats_bit_by_bit()
    {
        using var scope = NewDisposeScope();
        OpCheck.Repeats(i => FlaOps.SwiGlu(i[0], i[1]), randn(3000, 65), randn(3000, 65));
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var gate = ones(2, 8);
        Assert.Throws<ArgumentNullException>("gate", () => FlaOps.SwiGlu(null!, gate));
        Assert.Throws<ArgumentNullException>("up", () => FlaOps.SwiGlu(gate, null!));
        Assert.Throws<ArgumentException>("gate", () => FlaOps.SwiGlu(gate.to(int64), gate));
        Assert.Throws<ArgumentException>("up", () => FlaOps.SwiGlu(gate, ones(2, 1)));
        Assert.Throws<ArgumentException>("up", () => FlaOps.SwiGlu(gate, gate.to(bfloat16)));
    }
}
