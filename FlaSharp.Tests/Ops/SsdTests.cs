using CsCheck;
using FlaSharp.Ops;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class SsdTests
{
    [Theory]
    [InlineData(1, 1, 1, 1, 1)]
    [InlineData(2, 3, 1, 16, 8)]
    [InlineData(15, 4, 2, 7, 60)]
    [InlineData(16, 4, 4, 64, 16)]
    [InlineData(17, 8, 1, 60, 7)]
    [InlineData(63, 3, 3, 8, 100)]
    [InlineData(64, 2, 1, 32, 32)]
    [InlineData(65, 8, 2, 64, 128)]
    [InlineData(128, 4, 1, 100, 64)]
    [InlineData(200, 6, 2, 128, 17)]
    public void Agrees_with_the_recurrence(int time, int heads, int groups, int headSize, int stateSize)
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(2, time, heads, groups, headSize, stateSize);
        Check(inputs);
        Check(inputs.Without("d", "z", "dtBias", "initialState"));
    }

    [Fact]
    public void Rates_may_be_logarithms()
    {
        using var scope = NewDisposeScope();
        var (x, dt, b, c) = (randn(2, 20, 4, 8), rand(2, 20, 4), randn(2, 20, 1, 8), randn(2, 20, 1, 8));
        Tensor Gradient(Func<Tensor, Tensor> operation)
        {
            var logarithm = arange(4, ScalarType.Float32).requires_grad_();
            operation(logarithm).pow(2).sum().Backward();
            return logarithm.grad!;
        }
        var expected = Gradient(a => FlaOps.Ssd(x, dt, -a.exp(), b, c).output);
        var actual = Gradient(a => FlaOps.Ssd(x, dt, a, b, c, aIsLog: true).output);
        Assert.True(actual.allclose(expected, 0, 0));
    }

    [Fact]
    public void Any_sizes_of_the_grid_agree_with_the_recurrence()
    {
        foreach (var (time, heads, stateSize, headSize) in Grid.Cases())
        {
            using var scope = NewDisposeScope();
            Check(new Inputs(1, time, heads, groups: 1, headSize, stateSize));
        }
    }

    [Theory]
    [InlineData("d")]
    [InlineData("z")]
    [InlineData("dtBias")]
    [InlineData("initialState")]
    public void Each_optional_input_alone_agrees_with_the_recurrence(string only)
    {
        using var scope = NewDisposeScope();
        var others = ((string[])["d", "z", "dtBias", "initialState"]).Where(name => name != only).ToArray();
        Check(new Inputs(2, 70, 4, 2, 16, 8).Without(others));
        Check(new Inputs(2, 70, 4, 2, 16, 8, dPerChannel: true).Without(others));
    }

    [Theory]
    [InlineData(1e-4)]
    [InlineData(1)]
    [InlineData(20)]
    [InlineData(1e3)]
    [InlineData(1e6)]
    public void Every_strength_of_decay_is_exact_and_finite(double strength)
    {
        using var scope = NewDisposeScope();
        Check(new Inputs(2, 100, 4, 1, 8, 8, decay: strength));
    }

    [Fact]
    public void A_reset_costs_later_decays_no_digits()
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(1, 64, 2, 1, 8, 8) { DtSoftplus = false }.Without("dtBias");
        using (no_grad())
        {
            inputs["dt"]!.fill_(0.01).narrow(1, 3, 5).fill_(1e5);
            inputs["x"]!.narrow(1, 3, 5).mul_(1e-5);
        }
        Check(inputs);
    }

    [Fact]
    public void Step_sizes_stay_within_their_limits()
    {
        using var scope = NewDisposeScope();
        Check(new Inputs(2, 70, 4, 1, 8, 8) { DtLimit = (0.3, 1.1) });
        Check(new Inputs(2, 70, 4, 1, 8, 8) { DtLimit = (0, double.PositiveInfinity), DtSoftplus = false });
    }

    [Fact]
    public void Packed_sequences_agree_with_the_recurrence()
    {
        using var scope = NewDisposeScope();
        Check(new Inputs(1, 211, 4, 2, 8, 6, offsets: [0, 0, 17, 17, 18, 147, 211, 211]));
        Check(new Inputs(1, 128, 4, 2, 8, 6, offsets: [0, 128]).Without("initialState"));
    }

    [Fact]
    public void A_packed_neighbour_leaks_nothing()
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(1, 150, 4, 2, 8, 6, offsets: [0, 40, 40, 105, 150]);
        var (output, state, gradients) = inputs.Run();
        using (no_grad())
            foreach (var name in (string[])["x", "dt", "b", "c", "z"])
                inputs[name]!.narrow(1, 40, 65).fill_(float.NaN);
        var (output2, state2, gradients2) = inputs.Run();
        foreach (var (start, length) in (ReadOnlySpan<(int, int)>)[(0, 40), (105, 45)])
        {
            Assert.Equal(output.narrow(1, start, length), output2.narrow(1, start, length));
            foreach (var name in (string[])["x", "dt", "b", "c", "z"])
                Assert.Equal(gradients[name].narrow(1, start, length), gradients2[name].narrow(1, start, length));
        }
        foreach (var s in (ReadOnlySpan<int>)[0, 1, 3])
        {
            Assert.Equal(state[s], state2[s]);
            Assert.Equal(gradients["initialState"][s], gradients2["initialState"][s]);
        }
    }

    [Fact]
    public void Prefill_and_steps_give_what_one_pass_gives()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var inputs = new Inputs(2, 140, 4, 2, 16, 24);
        var (output, state) = inputs.Forward();
        var outputs = new List<Tensor>();
        Tensor? running = inputs["initialState"];
        foreach (var (start, length) in (ReadOnlySpan<(int, int)>)[(0, 100), (100, 37), (137, 1), (138, 1), (139, 1)])
        {
            Tensor Part(string name) => inputs[name]!.narrow(1, start, length);
            (var part, running) = FlaOps.Ssd(Part("x"), Part("dt"), inputs["a"]!, Part("b"), Part("c"), inputs["d"], Part("z"), inputs["dtBias"],
                inputs.DtSoftplus, inputs.DtLimit, running, outputFinalState: true);
            outputs.Add(part);
        }
        Compare.Close(cat(outputs, 1), output, 1e-6, "output");
        Compare.Close(running!, state, 1e-6, "final state");
    }

    [Fact]
    public void Runs_repeat_bitwise()
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(3, 150, 4, 2, 32, 20);
        var (output, state, gradients) = inputs.Run();
        for (var run = 0; run < 5; run++)
        {
            var (output2, state2, gradients2) = inputs.Run();
            Assert.Equal(output, output2);
            Assert.Equal(state, state2);
            Assert.All(gradients, gradient => Assert.Equal(gradient.Value, gradients2[gradient.Key]));
        }
    }

    [Fact]
    public void A_row_of_a_batch_gives_bitwise_what_it_gives_alone()
    {
        using var scope = NewDisposeScope();
        // So many rows that each is one piece of work. Without softplus and silu, which TorchSharp rounds by a number's place.
        var inputs = new Inputs(64, 70, 2, 1, 16, 8) { DtSoftplus = false, DtLimit = (0, 2) }.Without("z", "initialState");
        var (output, _, gradients) = inputs.Run();
        foreach (var row in (ReadOnlySpan<long>)[0, 37, 63])
        {
            var (output1, _, gradients1) = inputs.Row(row).Run();
            Assert.Equal(output.narrow(0, row, 1), output1);
            foreach (var name in (string[])["x", "dt", "b", "c"])
                Assert.Equal(gradients[name].narrow(0, row, 1), gradients1[name]);
        }
    }

    [Fact]
    public void A_state_is_updated_in_place()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var inputs = new Inputs(2, 5, 4, 2, 8, 8);
        var (expected, expectedState) = Run(inputs["initialState"]!.detach(), false);
        var state = inputs["initialState"]!.detach().clone();
        var (output, updated) = Run(state, true);
        Assert.Same(state, updated);
        Assert.Equal(expected, output);
        Assert.Equal(expectedState, state);
        Assert.Throws<ArgumentException>("initialState", () => Run(null, true));
        Assert.Throws<ArgumentException>("initialState", () => Run(state.transpose(2, 3), true));

        (Tensor, Tensor?) Run(Tensor? initialState, bool update) => FlaOps.Ssd(inputs["x"]!, inputs["dt"]!, inputs["a"]!,
            inputs["b"]!, inputs["c"]!, dtSoftplus: true, initialState: initialState, outputFinalState: true, updateState: update);
    }

    [Fact]
    public void Plans_say_what_computes_it()
    {
        using var x = zeros(1, 100, 2, 16);
        Assert.Equal(new OperationPath("Ssd", "cpu-simd", "A kernel for the CPU."), FlaOps.PlanSsd(x, 32));
        Assert.Throws<ArgumentOutOfRangeException>("stateSize", () => FlaOps.PlanSsd(x, 0));
    }

    [Fact]
    public void Without_a_final_state_the_rest_is_the_same()
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(2, 130, 4, 2, 8, 8) { OutputFinalState = false };
        Check(inputs);
        Check(inputs.Without("initialState"));
        Assert.Null(FlaOps.Ssd(inputs["x"]!, inputs["dt"]!, inputs["a"]!, inputs["b"]!, inputs["c"]!).finalState);
    }

    [Theory]
    [InlineData(ScalarType.Float16, false)]
    [InlineData(ScalarType.Float16, true)]
    [InlineData(ScalarType.BFloat16, false)]
    [InlineData(ScalarType.BFloat16, true)]
    public void Half_precision_is_rounded_at_the_ends_only(ScalarType dtype, bool parametersToo)
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(2, 130, 4, 2, 16, 16);
        inputs.Convert(dtype, parametersToo ? ["x", "dt", "a", "b", "c", "d", "z", "dtBias"] : ["x", "b", "c", "z"]);
        Check(inputs, 0.004, 0.005);
    }

    [Fact]
    public void Strides_do_not_matter()
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(2, 70, 4, 2, 9, 5);
        var (output, state, gradients) = inputs.Run();
        inputs.Scatter();
        Assert.False(inputs["x"]!.is_contiguous());
        var (output2, state2, gradients2) = inputs.Run();
        Compare.Close(output2, output, 1e-6, "output");
        Compare.Close(state2, state, 1e-6, "final state");
        Assert.All(gradients, gradient => Compare.Close(gradients2[gradient.Key], gradient.Value, 1e-6, gradient.Key));
    }

    [Fact]
    public void Only_the_wanted_gradients_are_made()
    {
        using var scope = NewDisposeScope();
        foreach (var name in Inputs.Names)
        {
            var inputs = new Inputs(2, 70, 4, 2, 8, 8);
            foreach (var other in Inputs.Names.Where(other => other != name))
                inputs[other]!.requires_grad_(false);
            var (_, _, gradients) = inputs.Run();
            var (_, _, expected) = inputs.Recurrence();
            GradientClose(inputs, name, gradients[name], expected[name], 1e-5);
        }
    }

    [Fact]
    public void Any_sizes_agree_with_the_recurrence()
    {
        var sizes = Gen.Select(Gen.Int[1, 90], Gen.Int[1, 3], Gen.Int[1, 3], Gen.Int[1, 40], Gen.Int[1, 40], Gen.Int[0, 7]);
        sizes.Sample((time, groups, headsPerGroup, headSize, stateSize, options) =>
        {
            using var scope = NewDisposeScope();
            var inputs = new Inputs(1 + options % 2, time, groups * headsPerGroup, groups, headSize, stateSize, dPerChannel: options % 3 == 0)
            {
                DtSoftplus = options < 4,
                DtLimit = options < 3 ? null : (0, 2),
            };
            Check(options % 4 == 0 ? inputs.Without("initialState", "dtBias") : inputs);
        }, iter: 25, threads: 1);
    }

    [Theory]
    [InlineData("x", "x must have shape [B, T, H, P]")]
    [InlineData("dt", "dt must have shape [B, T, H] = [2, 5, 4]")]
    [InlineData("a", "a must have shape [H] = [4]")]
    [InlineData("b", "b must have shape [B, T, G, N]")]
    [InlineData("c", "c must have shape [B, T, G, N]")]
    [InlineData("d", "d must have shape [H] or [H, P]")]
    [InlineData("z", "z must have shape [B, T, H, P]")]
    [InlineData("dtBias", "dtBias must have shape [H]")]
    [InlineData("initialState", "initialState must have shape [S, H, P, N]")]
    public void A_wrong_shape_or_dtype_is_refused(string name, string message)
    {
        using var scope = NewDisposeScope();
        var inputs = new Inputs(2, 5, 4, 2, 3, 6);
        inputs[name] = zeros(7, 7, 7);
        var error = Assert.Throws<ArgumentException>(() => inputs.Forward());
        Assert.Equal(name, error.ParamName);
        Assert.Contains(message, error.Message);

        inputs = new Inputs(2, 5, 4, 2, 3, 6);
        inputs[name] = inputs[name]!.detach().to(float64);
        Assert.Equal(name, Assert.Throws<ArgumentException>(() => inputs.Forward()).ParamName);
    }

    [Fact]
    public void Other_bad_input_is_refused()
    {
        using var scope = NewDisposeScope();
        void Refused(string name, Tensor x, Tensor b, (double, double)? limit = null, Tensor? cuSeqlens = null)
        {
            var error = Assert.Throws<ArgumentException>(() =>
                FlaOps.Ssd(x, zeros([x.size(0), x.size(1), x.size(2)]), zeros([x.size(2)]), b, b, dtLimit: limit, cuSeqlens: cuSeqlens));
            Assert.Equal(name, error.ParamName);
        }
        Refused("x", zeros(2, 0, 4, 3), zeros(2, 0, 1, 3));
        Refused("b", zeros(2, 5, 4, 3), zeros(2, 5, 1, 0));
        Refused("H", zeros(2, 5, 4, 3), zeros(2, 5, 3, 3));
        Refused("dtLimit", zeros(2, 5, 4, 3), zeros(2, 5, 1, 3), limit: (1, 0.5));
        Refused("dtLimit", zeros(2, 5, 4, 3), zeros(2, 5, 1, 3), limit: (0, double.NaN));
        Refused("cuSeqlens", zeros(2, 5, 4, 3), zeros(2, 5, 1, 3), cuSeqlens: tensor((long[])[0, 5]));
        Refused("cuSeqlens", zeros(1, 5, 4, 3), zeros(1, 5, 1, 3), cuSeqlens: tensor((long[])[0, 4]));
        Assert.Throws<ArgumentNullException>("x", () => FlaOps.Ssd(null!, zeros(1), zeros(1), zeros(1), zeros(1)));
    }

    private static void Check(Inputs inputs, double limit = 1e-5, double gradientLimit = 5e-5)
    {
        var (output, state, gradients) = inputs.Run();
        var (expectedOutput, expectedState, expectedGradients) = inputs.Recurrence();
        Assert.Equal(inputs["x"]!.dtype, output.dtype);
        Compare.Close(output, expectedOutput, limit, $"{inputs}: output");
        if (inputs.OutputFinalState)
        {
            Assert.Equal(ScalarType.Float32, state.dtype);
            Compare.Close(state, expectedState, limit, $"{inputs}: final state");
        }
        Assert.Equal(expectedGradients.Keys, gradients.Keys);
        foreach (var (name, expected) in expectedGradients)
            GradientClose(inputs, name, gradients[name], expected, gradientLimit);
    }

    private static void GradientClose(Inputs inputs, string name, Tensor actual, Tensor expected, double limit)
    {
        var what = $"{inputs}: gradient of {name}";
        if (Inputs.PerTokenNames.Contains(name))
            Compare.SumClose(actual, expected, limit, what);
        else
            Compare.Close(actual, expected, limit, what);
    }

    /// <summary>All inputs of a call by name, its options, and the gradients that its outputs get.</summary>
    private sealed class Inputs
    {
        public static readonly string[] Names = ["x", "dt", "a", "b", "c", "d", "z", "dtBias", "initialState"];

        /// <summary>What all tokens share: <see cref="Recurrence"/> gives the gradients of these token by token.</summary>
        public static readonly string[] PerTokenNames = ["a", "d", "dtBias"];

        private readonly Dictionary<string, Tensor?> _tensors = [];
        private readonly long[]? _offsets;
        private Tensor _gradOutput, _gradState;

        public Inputs(long batch, long time, long heads, long groups, long headSize, long stateSize, bool dPerChannel = false,
            double decay = 1, long[]? offsets = null)
        {
            _offsets = offsets;
            var random = new Generator(3);
            Tensor Normal(params long[] sizes) => randn(sizes, generator: random);
            var sequences = offsets is null ? batch : offsets.Length - 1;
            this["x"] = Normal(batch, time, heads, headSize);
            this["dt"] = Normal(batch, time, heads);
            this["a"] = -exp(Normal(heads) * 0.5) * decay;
            this["b"] = Normal(batch, time, groups, stateSize);
            this["c"] = Normal(batch, time, groups, stateSize);
            this["d"] = dPerChannel ? Normal(heads, headSize) : Normal(heads);
            this["z"] = Normal(batch, time, heads, headSize);
            this["dtBias"] = Normal(heads) - 1;
            this["initialState"] = Normal(sequences, heads, headSize, stateSize);
            _gradOutput = Normal(batch, time, heads, headSize);
            _gradState = Normal(sequences, heads, headSize, stateSize);
        }

        public bool DtSoftplus { get; init; } = true;
        public (double min, double max)? DtLimit { get; init; }
        public bool OutputFinalState { get; init; } = true;

        public Tensor? this[string name]
        {
            get => _tensors[name];
            set => _tensors[name] = value?.detach().requires_grad_();
        }

        public override string ToString() =>
            $"x [{string.Join(", ", this["x"]!.shape)}], b [{string.Join(", ", this["b"]!.shape)}]";

        public Inputs Without(params string[] names)
        {
            foreach (var name in names)
                this[name] = null;
            return this;
        }

        /// <summary>One row of the batch, without a gate and an initial state.</summary>
        public Inputs Row(long row)
        {
            var result = new Inputs(1, 1, 1, 1, 1, 1)
            {
                DtSoftplus = DtSoftplus,
                DtLimit = DtLimit,
                _gradOutput = _gradOutput.narrow(0, row, 1),
                _gradState = _gradState.narrow(0, row, 1),
            };
            foreach (var name in Names)
                result[name] = name is "x" or "dt" or "b" or "c" ? this[name]!.narrow(0, row, 1) : this[name];
            return result;
        }

        public void Convert(ScalarType dtype, string[] names)
        {
            foreach (var name in names)
                this[name] = this[name]!.to(dtype);
        }

        /// <summary>The same values with other strides, and with other values in between.</summary>
        public void Scatter()
        {
            foreach (var name in Names)
            {
                var values = this[name]!.detach();
                var sizes = values.shape;
                sizes[^1] *= 2;
                this[name] = full(sizes, float.NaN).unflatten(values.dim() - 1, -1, 2).select(values.dim(), 1).copy_(values);
            }
        }

        public (Tensor output, Tensor state) Forward()
        {
            var (output, state) = FlaOps.Ssd(this["x"]!, this["dt"]!, this["a"]!, this["b"]!, this["c"]!, this["d"], this["z"], this["dtBias"],
                DtSoftplus, DtLimit, this["initialState"], OutputFinalState, _offsets is null ? null : tensor(_offsets));
            return (output, state ?? zeros_like(_gradState));
        }

        public (Tensor output, Tensor state, Dictionary<string, Tensor> gradients) Run()
        {
            var (output, state) = Forward();
            return (output, state, Gradients(output, state, _tensors));
        }

        public (Tensor output, Tensor state, Dictionary<string, Tensor> gradients) Recurrence()
        {
            var inputs = _tensors.ToDictionary(pair => pair.Key, pair => pair.Value is not { } input
                ? null
                : (PerTokenNames.Contains(pair.Key) ? PerToken(input) : input)
                    .detach().to(float64).requires_grad_(input.requires_grad));
            var (output, state) = NaiveSsd.Run(inputs["x"]!, inputs["dt"]!, inputs["a"]!, inputs["b"]!, inputs["c"]!, inputs["d"], inputs["z"],
                inputs["dtBias"], DtSoftplus, DtLimit, inputs["initialState"], _offsets);
            return (output, state, Gradients(output, state, inputs));
        }

        /// <summary>A copy per token, as the recurrence takes it: [B, T, H] of a and dtBias, [B, T, H, 1 or P] of d.</summary>
        private Tensor PerToken(Tensor shared)
        {
            var x = this["x"]!;
            var heads = ReferenceEquals(shared, this["d"]) && shared.dim() == 1 ? shared.unsqueeze(-1) : shared;
            return heads.expand([x.size(0), x.size(1), .. heads.shape]).clone();
        }

        private Dictionary<string, Tensor> Gradients(Tensor output, Tensor state, Dictionary<string, Tensor?> inputs)
        {
            var wanted = inputs.Where(pair => pair.Value is { requires_grad: true }).ToList();
            foreach (var (_, input) in wanted)
                input!.grad = null;
            var loss = (output * _gradOutput.to(output.dtype)).sum(output.dtype == float64 ? float64 : float32);
            if (OutputFinalState)
                loss += (state * _gradState.to(state.dtype)).sum();
            loss.Backward();
            return wanted.ToDictionary(pair => pair.Key, pair => pair.Value!.grad!);
        }
    }
}
