using CsCheck;
using FlaSharp.IO;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class SelectiveScanTests
{
    private const double Limit = 2e-6, GradientLimit = 5e-6;

    [Theory]
    [InlineData(2, 1, 16, 16, 1)]
    [InlineData(1, 2, 17, 1, 1)]
    [InlineData(2, 15, 1, 8, 1)]
    [InlineData(1, 16, 34, 17, 2)]
    [InlineData(2, 17, 48, 16, 3)]
    [InlineData(1, 63, 6, 16, 6)]
    [InlineData(1, 65, 16, 256, 1)]
    [InlineData(3, 100, 32, 64, 2)]
    [InlineData(1, 33, 304, 16, 1)]
    public void Agrees_with_float64(int batch, int time, int channels, int states, int groups) =>
        Check(Inputs(batch, time, channels, states, groups), softplus: true, null);

    [Fact]
    public void Rates_may_be_logarithms()
    {
        using var scope = NewDisposeScope();
        var x = Inputs(2, 20, 16, 8, 1);
        Tensor Output(Tensor a, bool isLog) => FlaOps.SelectiveScan(
            x["u"], x["delta"], a, x["b"], x["c"], deltaSoftplus: true, aIsLog: isLog).output;
        Tensor Gradient(Func<Tensor, Tensor> operation)
        {
            var logarithm = randn([16, 8], generator: new Generator(1)).requires_grad_();
            operation(logarithm).pow(2).sum().Backward();
            return logarithm.grad!;
        }
        var expected = Gradient(a => Output(-a.exp(), false));
        var actual = Gradient(a => Output(a, true));
        Assert.True(actual.allclose(expected, 0, 0));
    }

    [Fact]
    public void Agrees_with_float64_on_the_grid()
    {
        foreach (var (time, groups, states, channels) in Grid.Cases())
            Check(Inputs(1, time, groups * channels, states, groups), softplus: true, null);
    }

    [Theory]
    [InlineData("")]
    [InlineData("d")]
    [InlineData("z")]
    [InlineData("deltaBias")]
    [InlineData("initialState")]
    [InlineData("d z")]
    [InlineData("z deltaBias initialState")]
    public void Optional_inputs_may_be_absent(string present)
    {
        foreach (var softplus in new[] { true, false })
        {
            var inputs = Inputs(2, 40, 24, 16, 1);
            foreach (var name in new[] { "d", "z", "deltaBias", "initialState" })
                if (!present.Split(' ').Contains(name))
                    inputs.Remove(name);
            if (!softplus)
                inputs["delta"] = inputs["delta"].abs() * 0.3;
            if (!softplus && present.Contains("deltaBias"))
                inputs["deltaBias"] = inputs["deltaBias"].abs() * 0.3;
            Check(inputs, softplus, null);
        }
    }

    [Fact]
    public void Agrees_with_float64_on_packed_sequences() =>
        Check(Inputs(8, 200, 33, 16, 3, packed: true), true, [0, 0, 1, 3, 67, 67, 130, 200, 200]);

    [Fact]
    public void Many_packed_sequences_are_summed_in_ranges() =>
        Check(Inputs(40, 120, 16, 4, 1, packed: true), true, [.. Enumerable.Range(0, 41).Select(i => 3L * i)]);

    [Theory]
    [InlineData(1.0)]
    [InlineData(30.0)]
    [InlineData(1000.0)]
    public void Strong_steps_forget_without_overflow(double strength)
    {
        var inputs = Inputs(1, 70, 16, 16, 1);
        inputs["delta"] = inputs["delta"] * strength;
        Check(inputs, true, null);
    }

    [Fact]
    public void Tiny_steps_keep_their_precision()
    {
        var inputs = Inputs(1, 70, 16, 16, 1);
        inputs["delta"] = inputs["delta"] - 15;
        Check(inputs, true, null);
    }

    [Theory]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Half_inputs_agree_with_float64_on_the_rounded_inputs(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 100, 24, 16, 2).ToDictionary(i => i.Key,
            i => i.Key is "u" or "delta" or "b" or "c" or "z" ? i.Value.to(dtype) : i.Value);
        var expected = Gradients.Of(i => Naive(i, true, null), inputs, float64);
        foreach (var (path, run) in Paths(true, null))
        {
            var actual = Gradients.Of(run, inputs);
            Assert.Equal(dtype, actual["output"].dtype);
            Assert.Equal(ScalarType.Float32, actual["finalState"].dtype);
            Gradients.Close(actual, expected, 0.004, 0.005, path);
        }
    }

    [Fact]
    public void Strides_do_not_matter()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(2, 40, 32, 16, 2);
        var views = inputs.ToDictionary(i => i.Key, i => i.Key is "u" or "z"
            ? cat([i.Value, i.Value], 2).narrow(2, 32, 32)
            : i.Value.unsqueeze(-1).repeat([.. i.Value.shape.Select(_ => 1L), 2]).select(-1, 1));
        views["delta"] = inputs["delta"].transpose(0, 2).contiguous().transpose(0, 2);
        Assert.All(views.Values, view => Assert.False(view.is_contiguous()));
        foreach (var (path, run) in Paths(true, null))
            Gradients.Same(Gradients.Of(run, inputs), Gradients.Of(run, views), path);
    }

    [Fact]
    public void Runs_repeat_bitwise_and_packed_neighbours_do_not_leak()
    {
        using var scope = NewDisposeScope();
        long[] offsets = [0, 70, 70, 75, 190];
        var inputs = Inputs(4, 190, 32, 16, 1, packed: true);
        foreach (var (path, run) in Paths(true, offsets))
        {
            var first = Gradients.Of(run, inputs);
            Gradients.Same(first, Gradients.Of(run, inputs), path);

            // The third sequence has the same bits whatever the others hold.
            var other = new Dictionary<string, Tensor>(inputs);
            foreach (var name in new[] { "u", "delta", "b", "c", "z" })
            {
                var value = inputs[name].clone();
                value.narrow(1, 0, 70).normal_();
                value.narrow(1, 75, 115).fill_(float.NaN);
                other[name] = value;
            }
            var second = Gradients.Of(run, other);
            foreach (var name in new[] { "output", "du", "ddelta", "db", "dc", "dz" })
                Assert.True(
                    first[name].narrow(1, 70, 5).equal(second[name].narrow(1, 70, 5)).all().ToBoolean(), $"{path}: {name}");
            foreach (var name in new[] { "finalState", "dinitialState" })
                Assert.True(first[name][2].equal(second[name][2]).all().ToBoolean(), $"{path}: {name}");
            Assert.True(first["finalState"][1].equal(inputs["initialState"][1]).all().ToBoolean(), $"{path}: empty sequence");
        }
    }

    [Fact]
    public void Any_split_of_a_sequence_gives_the_whole() =>
        Gen.Select(Gen.Int[1, 20], Gen.Int[1, 40], Gen.Int[1, 40], Gen.Int[0, 1000]).Sample((states, channels, time, seed) =>
        {
            using var scope = NewDisposeScope();
            var i = Inputs(2, time, channels, states, 1, seed: seed);
            var (whole, wholeState) = Kernel(i, true, null);
            var parts = new List<Tensor>();
            Tensor? state = i["initialState"];
            for (int t = 0, next; t < time; t = next)
            {
                next = Math.Min(time, t + 1 + (seed + t) % 5);
                var part = i.ToDictionary(p => p.Key, p =>
                    p.Value.dim() > 2 && p.Key != "initialState" ? p.Value.narrow(1, t, next - t) : p.Value);
                part["initialState"] = state!;
                (var y, state) = Kernel(part, true, null);
                parts.Add(y);
            }
            return cat(parts, 1).equal(whole).all().ToBoolean() && state!.equal(wholeState!).all().ToBoolean();
        }, iter: 40, threads: 1);

    [Fact]
    public void A_state_is_updated_in_place()
    {
        using var scope = NewDisposeScope();
        var i = Inputs(2, 5, 8, 4, 1);
        var (expected, expectedState) = Kernel(i, true, null);
        var state = i["initialState"].clone();
        (Tensor output, Tensor? finalState) Update(Tensor? initialState) => FlaOps.SelectiveScan(
            i["u"], i["delta"], i["a"], i["b"], i["c"], i["d"], i["z"], i["deltaBias"], deltaSoftplus: true, initialState,
            outputFinalState: true, updateState: true);
        var (output, finalState) = Update(state);
        Assert.True(output.equal(expected).all().ToBoolean());
        Assert.Same(state, finalState);
        Assert.True(state.equal(expectedState!).all().ToBoolean());

        var strided = state.transpose(1, 2).contiguous().transpose(1, 2);
        foreach (var refused in new[] { null, strided, state.clone().requires_grad_() })
            Assert.Equal("initialState", Assert.Throws<ArgumentException>(() => Update(refused)).ParamName);
        i["u"].requires_grad_();
        Assert.Contains("no_grad", Assert.Throws<InvalidOperationException>(() => Update(state)).Message);
    }

    [Fact]
    public void A_plan_says_what_computes_a_call()
    {
        using var scope = NewDisposeScope();
        Assert.Equal(FlaOps.CpuPath, FlaOps.PlanSelectiveScan(randn(1, 5, 8)).Path);
        Assert.Equal(FlaOps.TorchPath, FlaOps.PlanSelectiveScan(empty([1, 5, 8], device: META)).Path);
        Assert.Throws<ArgumentException>(() => FlaOps.PlanSelectiveScan(randn(5, 8)));
        Assert.Throws<ArgumentException>(() => FlaOps.PlanSelectiveScan(randn(1, 5, 8), groups: 3));
    }

    [Fact]
    public void The_final_state_alone_has_gradients()
    {
        using var scope = NewDisposeScope();
        var inputs = Inputs(1, 20, 16, 4, 1);
        Dictionary<string, Tensor> GradientsOf(
            Func<IReadOnlyDictionary<string, Tensor>, (Tensor, Tensor? finalState)> run, ScalarType dtype)
        {
            var leaves = inputs.ToDictionary(i => i.Key, i => i.Value.to(dtype).clone().requires_grad_());
            run(leaves).finalState!.sum().Backward();
            return leaves;
        }

        var expected = GradientsOf(i => Naive(i, true, null), float64);
        foreach (var (path, run) in Paths(true, null))
        {
            var actual = GradientsOf(run, float32);
            foreach (var name in new[] { "u", "delta", "a", "b", "deltaBias", "initialState" })
                Compare.Close(actual[name].grad!, expected[name].grad!, GradientLimit, $"{path}: d{name}");
        }
    }

    [Theory]
    [InlineData(0)]
    [InlineData(1)]
    public void Agrees_with_the_peers_reference(int file)
    {
        using var scope = NewDisposeScope();
        var golden = SafeTensors.Load(Golden.Folder($"op_selective_scan_{file}.safetensors"));
        // Their layout is [B, E, T] and [B, N, T].
        (string ours, string theirs)[] names =
            [("u", "u"), ("delta", "delta"), ("a", "A"), ("b", "B"), ("c", "C"), ("d", "D"),
            ("z", "z"), ("deltaBias", "delta_bias")];
        foreach (var (path, run) in Paths(true, null))
        {
            var leaves = new Dictionary<string, Tensor>();
            foreach (var (ours, theirs) in names)
            {
                var value = golden[theirs];
                value = value.dim() == 3 ? value.transpose(1, 2) : value;
                leaves[ours] = (ours is "b" or "c" ? value.unsqueeze(2) : value).detach().requires_grad_();
            }
            var (output, finalState) = run(leaves);
            (output * golden["do"].transpose(1, 2)).sum().Backward();
            Compare.Close(output.transpose(1, 2), golden["o"], 1e-4, $"{path}: o");
            Compare.Close(finalState!, golden["last"], 1e-4, $"{path}: last");
            foreach (var (ours, theirs) in names)
            {
                var gradient = leaves[ours].grad!;
                gradient = ours is "b" or "c" ? gradient.squeeze(2) : gradient;
                gradient = gradient.dim() == 3 ? gradient.transpose(1, 2) : gradient;
                Compare.Close(gradient, golden["d" + theirs], 1e-3, $"{path}: d{theirs}");
            }
        }
    }

    [Fact]
    public void Groups_of_one_may_leave_out_their_dimension()
    {
        using var scope = NewDisposeScope();
        var i = Inputs(2, 10, 8, 4, 1);
        var (grouped, _) = Kernel(i, true, null);
        i["b"] = i["b"].squeeze(2);
        i["c"] = i["c"].squeeze(2);
        Assert.True(Kernel(i, true, null).output.equal(grouped).all().ToBoolean());
    }

    [Fact]
    public void Bad_input_is_named()
    {
        using var scope = NewDisposeScope();
        var good = Inputs(2, 5, 8, 4, 2);
        void Fails(string name, Tensor? value, string? named = null)
        {
            var inputs = new Dictionary<string, Tensor>(good) { [name] = value! };
            Assert.Equal(named ?? name, Assert.ThrowsAny<ArgumentException>(() => Kernel(inputs, true, null)).ParamName);
        }

        foreach (var name in new[] { "u", "delta", "a", "b", "c" })
            Fails(name, null);
        Fails("u", randn(5, 8));
        Fails("u", randn(2, 0, 8));
        Fails("u", good["u"].to(float64));
        Fails("delta", randn(2, 5, 9));
        Fails("delta", good["delta"].to(float16));
        Fails("a", randn(4, 8));
        Fails("a", good["a"].to(bfloat16));
        Fails("b", randn(2, 5, 2, 5));
        Fails("b", randn(2, 5, 0, 4));
        Fails("b", good["b"].to(float16));
        Fails("c", randn(2, 5, 1, 4));
        Fails("d", randn(7));
        Fails("d", good["d"].to(float16));
        Fails("z", randn(2, 5, 4));
        Fails("deltaBias", randn(1, 8));
        Fails("initialState", randn(1, 8, 4));
        Fails("initialState", good["initialState"].to(float16));
        good["c"] = randn(2, 5, 3, 4);
        Fails("b", randn(2, 5, 3, 4));
        Assert.Equal("cuSeqlens", Assert.Throws<ArgumentException>(
            () => FlaOps.SelectiveScan(randn(1, 5, 8), randn(1, 5, 8), randn(8, 4), randn(1, 5, 4), randn(1, 5, 4),
                cuSeqlens: tensor(new long[] { 0, 6 }))).ParamName);
    }

    private static Dictionary<string, Tensor> Inputs(
        int sequences, int time, int channels, int states, int groups, bool packed = false, int seed = 7)
    {
        manual_seed(seed);
        var batch = packed ? 1 : sequences;
        return new Dictionary<string, Tensor>
        {
            ["u"] = randn(batch, time, channels),
            ["delta"] = randn(batch, time, channels),
            ["a"] = -randn(channels, states).exp(),
            ["b"] = randn(batch, time, groups, states),
            ["c"] = randn(batch, time, groups, states),
            ["d"] = randn(channels),
            ["z"] = randn(batch, time, channels),
            ["deltaBias"] = randn(channels),
            ["initialState"] = randn(sequences, channels, states),
        };
    }

    private static void Check(Dictionary<string, Tensor> inputs, bool softplus, long[]? offsets)
    {
        using var scope = NewDisposeScope();
        var expected = Gradients.Of(i => Naive(i, softplus, offsets), inputs, float64);
        foreach (var (path, run) in Paths(softplus, offsets))
            Gradients.Close(Gradients.Of(run, inputs), expected, Limit, GradientLimit, $"{path}, softplus {softplus}");
    }

    private static IEnumerable<(string, Func<IReadOnlyDictionary<string, Tensor>, (Tensor, Tensor?)>)> Paths(
        bool softplus, long[]? offsets)
    {
        yield return ("kernel", i => Kernel(i, softplus, offsets));
        yield return ("composed", i => Composed(i, softplus, offsets));
    }

    private static (Tensor output, Tensor? finalState) Kernel(
        IReadOnlyDictionary<string, Tensor> i, bool softplus, long[]? offsets) =>
        FlaOps.SelectiveScan(i["u"], i["delta"], i["a"], i["b"], i["c"], i.GetValueOrDefault("d"), i.GetValueOrDefault("z"),
            i.GetValueOrDefault("deltaBias"), softplus, i.GetValueOrDefault("initialState"), true,
            offsets is null ? null : tensor(offsets));

    private static (Tensor output, Tensor? finalState) Composed(
        IReadOnlyDictionary<string, Tensor> i, bool softplus, long[]? offsets)
    {
        var sequences = Sequences.Of(i["u"].size(0), i["u"].size(1), offsets is null ? null : tensor(offsets));
        var outputs = new SelectiveScanComposed(sequences, softplus, outputFinalState: true).Run(
            i["u"], i["delta"], i["a"], i["b"], i["c"], i.GetValueOrDefault("d"), i.GetValueOrDefault("z"),
            i.GetValueOrDefault("deltaBias"), i.GetValueOrDefault("initialState"));
        return (outputs[0]!, outputs[1]);
    }

    private static (Tensor, Tensor?) Naive(IReadOnlyDictionary<string, Tensor> i, bool softplus, long[]? offsets) =>
        NaiveSelectiveScan.Run(i["u"], i["delta"], i["a"], i["b"], i["c"], i.GetValueOrDefault("d"), i.GetValueOrDefault("z"),
            i.GetValueOrDefault("deltaBias"), softplus, i.GetValueOrDefault("initialState"), offsets);
}
