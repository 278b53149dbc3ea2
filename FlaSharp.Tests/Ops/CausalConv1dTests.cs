using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class CausalConv1dTests
{
    private const double Limit = 1e-6, GradientLimit = 2e-6;

    [Theory]
    [InlineData(2, 1, 16, 4)]
    [InlineData(3, 2, 17, 4)]
    [InlineData(2, 63, 1, 3)]
    [InlineData(1, 64, 48, 1)]
    [InlineData(2, 65, 33, 2)]
    [InlineData(1, 300, 16, 9)]
    [InlineData(2, 7, 20, 70)]
    [InlineData(1, 200, 5, 130)]
    [InlineData(2, 2048, 32, 4)]
    public void Agrees_with_float64(int batch, int time, int channels, int width)
    {
        foreach (var (bias, silu, state) in new[]
            { (true, true, true), (false, false, false), (true, false, true), (false, true, false) })
            Check(Inputs(batch, time, channels, width, bias, state), silu, null, $"bias {bias}, silu {silu}, state {state}");
    }

    [Theory]
    [InlineData(4)]
    [InlineData(1)]
    [InlineData(6)]
    public void Agrees_with_float64_on_packed_sequences(int width)
    {
        long[] offsets = [0, 0, 1, 3, 67, 67, 130, 200, 200];
        foreach (var state in new[] { true, false })
            Check(Inputs(offsets.Length - 1, 200, 19, width, true, state, packed: true), true, offsets, $"state {state}");
    }

    [Theory]
    [InlineData(ScalarType.Float16, false)]
    [InlineData(ScalarType.Float16, true)]
    [InlineData(ScalarType.BFloat16, false)]
    [InlineData(ScalarType.BFloat16, true)]
    public void Half_inputs_agree_with_float64_on_the_rounded_inputs(ScalarType dtype, bool float32Parameters)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 100, 24, 4, true, true)
            .ToDictionary(i => i.Key, i => float32Parameters && i.Key != "x" ? i.Value : i.Value.to(dtype));
        var expected = Gradients.Of(i => Naive(i, true, null), inputs, float64);
        foreach (var (path, run) in Paths(true, null))
        {
            var actual = Gradients.Of(run, inputs);
            Assert.Equal(dtype, actual["output"].dtype);
            Assert.Equal(ScalarType.Float32, actual["finalState"].dtype);
            // Results in dtype carry its rounding: up to 2^-9 relative for bfloat16, RMS 1.7e-3.
            Gradients.Close(actual, expected, 0.004, 0.005, path);
        }
    }

    [Fact]
    public void Strides_do_not_matter()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 40, 32, 4, true, true);
        var views = new Dictionary<string, Tensor>
        {
            ["x"] = cat([inputs["x"], inputs["x"]], 2).narrow(2, 32, 32),
            ["weight"] = inputs["weight"].t().contiguous().t(),
            ["bias"] = stack([inputs["bias"], inputs["bias"]], 1).select(1, 0),
            ["initialState"] = inputs["initialState"].permute(2, 1, 0).contiguous().permute(2, 1, 0),
        };
        Assert.All(views.Values, view => Assert.False(view.is_contiguous()));
        foreach (var (path, run) in Paths(true, null))
            Gradients.Same(Gradients.Of(run, inputs), Gradients.Of(run, views), path);
    }

    [Fact]
    public void Runs_repeat_bitwise_and_packed_neighbours_do_not_leak()
    {
        using var scope = NewDisposeScope();
        long[] offsets = [0, 70, 70, 75, 190];
        var inputs = Inputs(4, 190, 32, 4, true, true, packed: true);
        foreach (var (path, run) in Paths(true, offsets))
        {
            var first = Gradients.Of(run, inputs);
            Gradients.Same(first, Gradients.Of(run, inputs), path);

            // The third sequence has the same bits whatever the others hold.
            var other = new Dictionary<string, Tensor>(inputs)
            {
                ["x"] = cat([randn(1, 70, 32), inputs["x"].narrow(1, 70, 5), full(1, 115, 32, float.NaN)], 1),
                ["initialState"] = cat([randn(2, 32, 3), inputs["initialState"].narrow(0, 2, 1), randn(1, 32, 3)], 0),
            };
            var second = Gradients.Of(run, other);
            foreach (var name in new[] { "output", "dx" })
                Assert.True(
                    first[name].narrow(1, 70, 5).equal(second[name].narrow(1, 70, 5)).all().ToBoolean(), $"{path}: {name}");
            foreach (var name in new[] { "finalState", "dinitialState" })
                Assert.True(first[name][2].equal(second[name][2]).all().ToBoolean(), $"{path}: {name}");
        }
    }

    [Fact]
    public void An_empty_sequence_keeps_its_state()
    {
        using var scope = NewDisposeScope();
        var state = randn(2, 8, 3);
        var (_, finalState) = FlaOps.CausalConv1d(randn(1, 5, 8), randn(8, 1, 4), null, "silu", state, true,
            tensor(new long[] { 0, 0, 5 }));
        Assert.True(finalState![0].equal(state[0]).all().ToBoolean());
    }

    [Fact]
    public void Any_split_of_a_sequence_gives_the_whole() =>
        Gen.Select(Gen.Int[1, 7], Gen.Int[1, 20], Gen.Int[1, 40], Gen.Int[0, 1000]).Sample((width, channels, time, seed) =>
        {
            using var scope = NewDisposeScope();
            manual_seed(seed);
            var (x, weight, bias) = (randn(2, time, channels), randn(channels, width), randn(channels));
            var (whole, wholeState) = FlaOps.CausalConv1d(x, weight, bias, "silu", outputFinalState: true);
            var parts = new List<Tensor>();
            Tensor? state = null;
            for (int t = 0, next; t < time; t = next)
            {
                next = Math.Min(time, t + 1 + (seed + t) % 5);
                (var part, state) = FlaOps.CausalConv1d(x.narrow(1, t, next - t), weight, bias, "silu", state, true);
                parts.Add(part);
            }
            return cat(parts, 1).equal(whole).all().ToBoolean() && state!.equal(wholeState!).all().ToBoolean();
        }, iter: 40, threads: 1);

    [Fact]
    public void The_final_state_alone_has_gradients()
    {
        using var scope = NewDisposeScope();
        var x = randn(1, 2, 4, requires_grad: true);
        var state = randn([1, 4, 3], requires_grad: true);
        var (_, finalState) = FlaOps.CausalConv1d(x, randn(4, 4), null, "silu", state, true);
        (finalState! * arange(1, 4)).sum().Backward();
        Assert.True(x.grad!.equal(tensor(new float[] { 2, 3 }).reshape(1, 2, 1).expand(1, 2, 4)).all().ToBoolean());
        Assert.True(state.grad!.equal(tensor(new float[] { 0, 0, 1 }).expand(1, 4, 3)).all().ToBoolean());
    }

    [Fact]
    public void A_state_is_written_over()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var (x, weight, state) = (randn(2, 5, 8), randn(8, 1, 4), randn(2, 8, 3));
        var (output, expected) = FlaOps.CausalConv1d(x, weight, null, "silu", state, true);
        var (updated, finalState) = FlaOps.CausalConv1d(x, weight, null, "silu", state, true, updateState: true);
        Assert.Same(state, finalState);
        Assert.True(state.equal(expected!).all().ToBoolean() && updated.equal(output).all().ToBoolean());
        Assert.Null(FlaOps.CausalConv1d(x, weight, null, "silu", state, updateState: true).finalState);

        Assert.Throws<ArgumentException>("initialState", () => FlaOps.CausalConv1d(x, weight, updateState: true));
        Assert.Throws<ArgumentException>("initialState",
            () => FlaOps.CausalConv1d(x, weight, initialState: randn(2, 3, 8).transpose(1, 2), updateState: true));
        Assert.Throws<ArgumentException>("initialState", () => FlaOps.CausalConv1d(
            x.to(float16), weight, initialState: state.to(float16), updateState: true));
        using var grad = enable_grad();
        Assert.Throws<ArgumentException>("initialState",
            () => FlaOps.CausalConv1d(x, weight, initialState: randn([2, 8, 3], requires_grad: true), updateState: true));
        Assert.Throws<InvalidOperationException>(
            () => FlaOps.CausalConv1d(randn([2, 5, 8], requires_grad: true), weight, initialState: state, updateState: true));
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var (x, weight) = (randn(2, 5, 8), randn(8, 1, 4));
        void Fails(string name, Func<(Tensor, Tensor?)> call) =>
            Assert.Equal(name, Assert.ThrowsAny<ArgumentException>(() => call()).ParamName);

        Fails("x", () => FlaOps.CausalConv1d(null!, weight));
        Fails("x", () => FlaOps.CausalConv1d(randn(5, 8), weight));
        Fails("x", () => FlaOps.CausalConv1d(randn(2, 0, 8), weight));
        Fails("x", () => FlaOps.CausalConv1d(x.to(float64), weight));
        Fails("weight", () => FlaOps.CausalConv1d(x, null!));
        Fails("weight", () => FlaOps.CausalConv1d(x, randn(9, 4)));
        Fails("weight", () => FlaOps.CausalConv1d(x, randn(8, 2, 4)));
        Fails("weight", () => FlaOps.CausalConv1d(x, randn(8, 0)));
        Fails("weight", () => FlaOps.CausalConv1d(x, weight.to(float16)));
        Fails("bias", () => FlaOps.CausalConv1d(x, weight, randn(7)));
        Fails("activation", () => FlaOps.CausalConv1d(x, weight, activation: "relu"));
        Fails("initialState", () => FlaOps.CausalConv1d(x, weight, initialState: randn(2, 8, 4)));
        Fails("initialState", () => FlaOps.CausalConv1d(x, weight, initialState: randn(1, 8, 3)));
        Fails("cuSeqlens", () => FlaOps.CausalConv1d(x, weight, cuSeqlens: tensor(new long[] { 0, 5 })));
        Fails("cuSeqlens", () => FlaOps.CausalConv1d(x[..1], weight, cuSeqlens: tensor(new long[] { 0, 4 })));
    }

    private static Dictionary<string, Tensor> Inputs(
        int sequences, int time, int channels, int width, bool bias, bool state, bool packed = false)
    {
        manual_seed(time * 31 + channels);
        var inputs = new Dictionary<string, Tensor>
        {
            ["x"] = randn(packed ? 1 : sequences, time, channels),
            ["weight"] = randn(channels, width) / Math.Sqrt(width),
        };
        if (bias)
            inputs["bias"] = randn(channels);
        if (state)
            inputs["initialState"] = randn(sequences, channels, width - 1);
        return inputs;
    }

    private static void Check(Dictionary<string, Tensor> inputs, bool silu, long[]? offsets, string what)
    {
        using var scope = NewDisposeScope();
        var expected = Gradients.Of(i => Naive(i, silu, offsets), inputs, float64);
        foreach (var (path, run) in Paths(silu, offsets))
            Gradients.Close(Gradients.Of(run, inputs), expected, Limit, GradientLimit, $"{path}, {what}");
    }

    private static IEnumerable<(string, Func<IReadOnlyDictionary<string, Tensor>, (Tensor, Tensor?)>)> Paths(
        bool silu, long[]? offsets)
    {
        var cuSeqlens = offsets is null ? null : tensor(offsets);
        yield return ("kernel", i => FlaOps.CausalConv1d(i["x"], i["weight"], i.GetValueOrDefault("bias"), silu ? "silu" : null,
            i.GetValueOrDefault("initialState"), true, cuSeqlens));
        yield return ("composed", i => CausalConv.Run(
            Sequences.Of(i["x"].size(0), i["x"].size(1), cuSeqlens), i["x"], i["weight"],
            i.GetValueOrDefault("bias"), silu, i.GetValueOrDefault("initialState"), true));
    }

    private static (Tensor, Tensor?) Naive(IReadOnlyDictionary<string, Tensor> i, bool silu, long[]? offsets) =>
        NaiveCausalConv.Run(i["x"], i["weight"], i.GetValueOrDefault("bias"), silu, i.GetValueOrDefault("initialState"), offsets);
}
