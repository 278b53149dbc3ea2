using CsCheck;
using FlaSharp.Interop;
using FlaSharp.IO;
using FlaSharp.Kernels.Gla;
using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

public sealed class GlaTests : IDisposable
{
    private const double Float32Limit = 1e-5;

    /// <summary>Every way to compute it; "torch" is the recurrence in TorchSharp operations, not taken on a CPU.</summary>
    private static readonly string[] s_paths = ["FusedRecurrent", "torch", "Chunk", "FusedChunk"];

    public static TheoryData<string> Paths => [.. s_paths];

    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose() => _scope.Dispose();

    [Fact]
    public void Any_sizes()
    {
        foreach (var (time, heads, keySize, valueSize) in Grid.Cases())
        {
            using var scope = NewDisposeScope();
            Case layout = new() { Time = time, Heads = heads, KeySize = keySize, ValueSize = valueSize };
            var inputs = layout.Inputs();
            var expected = Expected(layout, inputs);
            foreach (var path in s_paths)
                Gradients.Close(Run(path, layout, inputs), expected, Float32Limit, Float32Limit, $"{path} {layout}");
        }
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Any_number_of_heads(string path)
    {
        foreach (var (heads, kvHeads) in new[] { (1, 1), (8, 8), (8, 2), (6, 3), (8, 1) })
            foreach (var withState in (bool[])[false, true])
                Check(path, new Case
                {
                    Batch = 2,
                    Time = 67,
                    Heads = heads,
                    KvHeads = kvHeads,
                    KeySize = 8,
                    ValueSize = 12,
                    WithState = withState,
                });
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void More_heads_than_a_grid_dimension_holds(string path) =>
        Check(path, new Case { Batch = 21_846, Time = 2, Heads = 3, KeySize = 3, ValueSize = 2 });

    [Theory]
    [MemberData(nameof(Paths))]
    public void Gates_from_0_to_reset(string path)
    {
        foreach (var gates in new[] { "0", "-0.001", "-1", "-8", "mixed", "-Infinity" })
            foreach (var reverse in (bool[])[false, true])
                Check(path, new Case
                {
                    Batch = 2,
                    Time = 100,
                    Heads = 2,
                    KeySize = 9,
                    ValueSize = 5,
                    Gates = gates,
                    Reverse = reverse,
                });
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Packed_sequences(string path)
    {
        foreach (var withState in (bool[])[false, true])
            foreach (var reverse in (bool[])[false, true])
                Check(path, new Case
                {
                    Offsets = [0, 0, 17, 17, 18, 147, 211, 211],
                    Time = 211,
                    Heads = 4,
                    KvHeads = 2,
                    KeySize = 8,
                    ValueSize = 6,
                    WithState = withState,
                    Reverse = reverse,
                });
        Check(path, new Case { Offsets = [0, 130], Time = 130, Heads = 1, KeySize = 8, ValueSize = 6 });
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Half_precision(string path)
    {
        foreach (var dtype in new[] { ScalarType.Float16, ScalarType.BFloat16 })
            foreach (var gateDtype in new[] { dtype, ScalarType.Float32 })
                Check(path, new Case
                {
                    Batch = 2,
                    Time = 130,
                    Heads = 2,
                    KeySize = 16,
                    ValueSize = 24,
                    Dtype = dtype,
                    GateDtype = gateDtype,
                }, 0.004, 0.005);
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Strided_inputs(string path)
    {
        Case layout = new() { Batch = 2, Time = 70, Heads = 2, KeySize = 6, ValueSize = 10 };
        var inputs = layout.Inputs();
        var strided = inputs.ToDictionary(input => input.Key, input => input.Key switch
        {
            "q" => input.Value.transpose(1, 2).contiguous().transpose(1, 2),
            "k" => cat([full_like(input.Value, float.NaN), input.Value], 3).narrow(3, layout.KeySize, layout.KeySize),
            "v" => stack([input.Value, full_like(input.Value, float.NaN)], 1).select(1, 0),
            "g" => input.Value.permute(3, 0, 1, 2).contiguous().permute(1, 2, 3, 0),
            _ => input.Value.mT.contiguous().mT,
        });
        Assert.All(strided.Values, x => Assert.False(x.is_contiguous()));
        Gradients.Close(Run(path, layout, strided), Expected(layout, inputs), Float32Limit, Float32Limit, path);
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Scale_and_single_gradients(string path)
    {
        Case layout = new() { Batch = 1, Time = 70, Heads = 4, KvHeads = 2, KeySize = 6, ValueSize = 10, Scale = -0.7 };
        Check(path, layout);

        // One input at a time asks for a gradient, and one output at a time gives one.
        var inputs = layout.Inputs();
        foreach (var wanted in inputs.Keys)
            foreach (var output in (bool[])[false, true])
            {
                Tensor Gradient(ScalarType dtype, Func<Dictionary<string, Tensor>, (Tensor, Tensor?)> operation)
                {
                    var leaves = inputs.ToDictionary(input => input.Key,
                        input => input.Value.detach().to(dtype).requires_grad_(input.Key == wanted));
                    var (o, state) = operation(leaves);
                    var loss = (output ? o : state!).sin().sum() + 0 * leaves[wanted].sum(); // the final state knows nothing of q
                    loss.Backward();
                    return leaves[wanted].grad!;
                }
                Compare.Close(Gradient(float32, x => Compute(path, layout, x)), Gradient(float64, x => Naive(layout, x)),
                    Float32Limit, $"{path}: d{wanted} from {(output ? "output" : "final state")}");
            }
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Random_shapes(string path) =>
        Gen.Select(Gen.Int[1, 3], Gen.Int[1, 80], Gen.Int[1, 3], Gen.Int[1, 3], Gen.Int[1, 40], Gen.Int[1, 40],
            Gen.Select(Gen.Bool, Gen.Bool))
            .Sample((batch, time, kvHeads, group, keySize, valueSize, options) =>
            {
                using var scope = NewDisposeScope();
                Check(path, new Case
                {
                    Batch = batch,
                    Time = time,
                    Heads = kvHeads * group,
                    KvHeads = kvHeads,
                    KeySize = keySize,
                    ValueSize = valueSize,
                    WithState = options.Item1,
                    Reverse = options.Item2,
                    Gates = "mixed",
                });
            }, iter: 12, threads: 1);

    [Theory]
    [MemberData(nameof(Paths))]
    public void The_peer_gives_the_same(string path)
    {
        var files = Directory.GetFiles(Golden.Folder(""), "op_gla_*.safetensors");
        Assert.NotEmpty(files);
        foreach (var file in files)
        {
            var golden = SafeTensors.Load(file);
            Case layout = new() { Time = golden["q"].size(1), Heads = golden["q"].size(2), KeySize = 0, ValueSize = 0 };
            var leaves = new[] { ("q", "q"), ("k", "k"), ("v", "v"), ("g", "g"), ("initialState", "h0") }
                .ToDictionary(x => x.Item1, x => golden[x.Item2].requires_grad_());
            var (output, finalState) = Compute(path, layout, leaves);
            ((output * golden["do"]).sum() + (finalState! * golden["dht"]).sum()).Backward();
            Compare.Close(output, golden["o"], 1e-4, $"{path} {file}: o");
            Compare.Close(finalState!, golden["ht"], 1e-4, $"{path} {file}: ht");
            foreach (var name in new[] { "q", "k", "v", "g", "h0" })
                Compare.Close(golden[name].grad!, golden["d" + name], 1e-3, $"{path} {file}: d{name}");
        }
    }

    [Fact]
    public void Modes_agree()
    {
        Case layout = new() { Batch = 2, Time = 200, Heads = 4, KvHeads = 2, KeySize = 24, ValueSize = 40, Gates = "mixed" };
        var inputs = layout.Inputs();
        var first = Run("FusedRecurrent", layout, inputs);
        foreach (var path in new[] { "torch", "Chunk", "FusedChunk" })
            Gradients.Close(Run(path, layout, inputs), first, Float32Limit, Float32Limit, path);
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Pieces_equal_one_pass(string path)
    {
        Case layout = new() { Batch = 2, Time = 150, Heads = 4, KvHeads = 2, KeySize = 8, ValueSize = 12, Gates = "mixed" };
        var inputs = layout.Inputs();
        var whole = Run(path, layout, inputs);
        var random = new Random(5);
        for (var trial = 0; trial < 3; trial++)
        {
            // A prefill, some odd pieces, and single steps at the end.
            var odd = Enumerable.Range(0, 4).Select(_ => random.Next(1, 145)).Distinct().Order();
            int[] cuts = [0, .. odd, 146, 147, 148, 149, 150];
            var pieces = Gradients.Of(x =>
            {
                var (outputs, state) = (new List<Tensor>(), (Tensor?)x["initialState"]);
                for (var i = 0; i + 1 < cuts.Length; i++)
                {
                    Tensor Piece(string name) => x[name].narrow(1, cuts[i], cuts[i + 1] - cuts[i]);
                    (var output, state) = Compute(path, layout, Piece("q"), Piece("k"), Piece("v"), Piece("g"), state);
                    outputs.Add(output);
                }
                return (cat(outputs, 1), state);
            }, inputs);
            Gradients.Close(pieces, whole, Float32Limit, Float32Limit, $"{path} cut at {string.Join(", ", cuts)}");
        }
    }

    [Theory]
    [InlineData(LinearAttentionMode.FusedRecurrent)]
    [InlineData(LinearAttentionMode.Auto)]
    [InlineData(LinearAttentionMode.Chunk)]
    public void A_state_is_updated_in_place(LinearAttentionMode mode)
    {
        using var noGrad = no_grad();
        foreach (var offsets in new int[]?[] { null, [0, 1, 1, 70] }) // the second sequence is empty: its state stays
            foreach (var reverse in (bool[])[false, true])
            {
                Case layout = new() { Offsets = offsets, Time = 70, Heads = 4, KvHeads = 2, KeySize = 20, ValueSize = 18 };
                var x = layout.Inputs();
                var cuSeqlens = offsets is null ? null : tensor(offsets);
                var (expected, expectedState) = FlaOps.Gla(x["q"], x["k"], x["v"], x["g"], mode,
                    initialState: x["initialState"], outputFinalState: true, cuSeqlens: cuSeqlens, reverse: reverse);
                var state = x["initialState"].clone();
                var pointer = TensorPointer.Of(state);
                using var scope = NewDisposeScope();
                var (output, finalState) = FlaOps.Gla(x["q"], x["k"], x["v"], x["g"], mode, initialState: state,
                    outputFinalState: true, cuSeqlens: cuSeqlens, reverse: reverse, updateState: true);
                Assert.Same(output, Assert.Single(scope.DisposablesView)); // the state stays in its own
                Assert.Same(state, finalState);
                Assert.Equal(pointer, TensorPointer.Of(state));
                Assert.True(output.equal(expected).all().ToBoolean());
                Assert.True(state.equal(expectedState!).all().ToBoolean());

                Assert.Null(FlaOps.Gla(x["q"], x["k"], x["v"], x["g"], mode, initialState: state, cuSeqlens: cuSeqlens,
                    reverse: reverse, updateState: true).finalState);
                Assert.False(state.equal(expectedState!).all().ToBoolean());
            }
    }

    [Fact]
    public void A_step_in_place_allocates_no_state()
    {
        Assert.SkipUnless(NativeMemory.CanMeasure, "Needs glibc 2.33 to measure.");
        using var noGrad = no_grad();
        var (q, k, v) = (zeros(1, 1, 16, 512), zeros(1, 1, 16, 512), zeros(1, 1, 16, 512));
        var state = zeros(1, 16, 512, 512); // 16 MiB
        var before = NativeMemory.Megabytes();
        var outputs = FlaOps.Gla(q, k, v, k, initialState: state, outputFinalState: true, updateState: true);
        Assert.InRange(NativeMemory.Megabytes() - before, -1, 1);
        Assert.Same(state, outputs.finalState);
    }

    [Fact]
    public void States_that_cannot_be_updated_are_refused()
    {
        var (q, k, v, g) = (zeros(2, 5, 4, 3), zeros(2, 5, 2, 3), zeros(2, 5, 2, 6), zeros(2, 5, 2, 3));
        var state = zeros(2, 4, 3, 6);
        Tensor Update(Tensor? state) => FlaOps.Gla(q, k, v, g, initialState: state, updateState: true).output;
        Assert.Equal([2, 5, 4, 6], Update(state).shape);

        Refused("there is none", null);
        Refused("must be float32", state.to(bfloat16));
        Refused("must have shape", state[..1]);
        Refused("must be contiguous", zeros(2, 4, 6, 3).mT);
        Refused("must be contiguous", state[..1].expand(2, 4, 3, 6));
        Refused("requires a gradient", zeros(2, 4, 3, 6).requires_grad_());
        using (no_grad())
            Refused("requires a gradient", zeros(2, 4, 3, 6).requires_grad_());

        q.requires_grad_();
        Assert.Contains("no_grad", Assert.Throws<InvalidOperationException>(() => Update(state)).Message);
        using (no_grad())
            Update(state);

        void Refused(string message, Tensor? state)
        {
            var thrown = Assert.Throws<ArgumentException>(() => Update(state));
            Assert.Equal("initialState", thrown.ParamName);
            Assert.Contains(message, thrown.Message, StringComparison.Ordinal);
        }
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void A_packed_neighbour_leaks_nothing(string path)
    {
        Case layout = new()
        {
            Offsets = [0, 40, 40, 105, 150],
            Time = 150,
            Heads = 4,
            KvHeads = 2,
            KeySize = 8,
            ValueSize = 6,
            Gates = "mixed",
        };
        var inputs = layout.Inputs();
        var before = Run(path, layout, inputs);
        foreach (var name in new[] { "q", "k", "v", "g" })
            inputs[name].narrow(1, 40, 65).fill_(float.NaN);
        var after = Run(path, layout, inputs);
        foreach (var (name, value) in before)
        {
            var perSequence = name is "finalState" or "dinitialState";
            var dimension = perSequence ? 0 : 1;
            foreach (var (start, length) in perSequence ? [(0, 2), (3, 1)] : new[] { (0, 40), (105, 45) })
            {
                var same = value.narrow(dimension, start, length).equal(after[name].narrow(dimension, start, length));
                Assert.True(same.all().ToBoolean(), name);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Paths))]
    public void Runs_repeat_bitwise(string path)
    {
        Case layout = new() { Batch = 2, Time = 150, Heads = 4, KvHeads = 2, KeySize = 24, ValueSize = 40, Gates = "mixed" };
        var inputs = layout.Inputs();
        Gradients.Same(Run(path, layout, inputs), Run(path, layout, inputs), path);
    }

    [Fact]
    public void A_batch_row_does_not_depend_on_how_the_work_is_dealt_out()
    {
        // Alone, a head is dealt out in pieces of V and K; among many it is one piece.
        Case layout = new() { Batch = 16, Time = 100, Heads = 4, KeySize = 40, ValueSize = 50, Gates = "mixed" };
        var inputs = layout.Inputs();
        var all = Compute("FusedRecurrent", layout, inputs);
        var alone = Compute("FusedRecurrent", layout, inputs.ToDictionary(x => x.Key,
            x => x.Key == "initialState" ? x.Value.narrow(0, 3, 1).narrow(1, 1, 1) : x.Value.narrow(0, 3, 1).narrow(2, 1, 1)));
        Assert.True(all.output.narrow(0, 3, 1).narrow(2, 1, 1).equal(alone.output).all().ToBoolean());
        Assert.True(all.finalState!.narrow(0, 3, 1).narrow(1, 1, 1).equal(alone.finalState!).all().ToBoolean());
    }

    [Fact]
    public unsafe void The_kernel_writes_every_element()
    {
        var call = new GlaCall([0, 0, 70, 200])
        {
            Heads = 4,
            KvHeads = 2,
            KeySize = 20,
            ValueSize = 18,
            Scale = 0.5f,
            Reverse = false,
        };
        Tensor Poisoned(params long[] sizes) => full(sizes, float.NaN);
        var (q, k, v, g) = (randn(200, 4, 20), randn(200, 2, 20), randn(200, 2, 18), -rand(200, 2, 20));
        var (output, state) = (Poisoned(200, 4, 18), Poisoned(3, 4, 20, 18));
        var checkpoints = Poisoned(call.CheckpointCount, 4, 20, 18);
        var (dq, dk, dg) = (Poisoned(200, 4, 20), Poisoned(200, 4, 20), Poisoned(200, 4, 20));
        var (dv, dState) = (Poisoned(200, 4, 18), Poisoned(3, 4, 20, 18));
        float* At(Tensor x) => TensorPointer.Float32(x);
        GlaRecurrenceCpu.Forward(call, At(q), At(k), At(v), At(g), null, At(output), At(state), At(checkpoints));
        GlaRecurrenceCpu.BackwardValue(call, At(q), At(k), At(g), At(output), null, At(dv));
        GlaRecurrenceCpu.BackwardKey(call, At(q), At(k), At(v), At(g), null, At(checkpoints), At(output), null,
            At(dq), At(dk), At(dg), At(dState));
        Assert.Equal(3, call.CheckpointCount);
        Assert.All([output, state, checkpoints, dq, dk, dg, dv, dState], x => Assert.True(x.isfinite().all().ToBoolean()));
    }

    [Fact]
    public void Auto_says_what_it_takes()
    {
        var q = zeros(1, 100, 2, 4);
        Assert.Equal((LinearAttentionMode.FusedRecurrent, "cpu-simd"), Taken(FlaOps.PlanGla(q)));
        Assert.Equal((LinearAttentionMode.FusedRecurrent, "cpu-simd"),
            Taken(FlaOps.PlanGla(q, LinearAttentionMode.FusedRecurrent)));
        Assert.Equal((LinearAttentionMode.Chunk, "torch"), Taken(FlaOps.PlanGla(q, LinearAttentionMode.Chunk)));
        Assert.Equal((LinearAttentionMode.FusedChunk, "torch"), Taken(FlaOps.PlanGla(q, LinearAttentionMode.FusedChunk)));

        var elsewhere = zeros([1, 100, 2, 4], device: META);
        Assert.Equal((LinearAttentionMode.Chunk, "torch"), Taken(FlaOps.PlanGla(elsewhere)));
        var shortOnes = FlaOps.PlanGla(elsewhere, cuSeqlens: arange(0, 101, 10, ScalarType.Int32));
        Assert.Equal((LinearAttentionMode.FusedRecurrent, "torch"), Taken(shortOnes));
        Assert.Contains("10 tokens", shortOnes.Reason, StringComparison.Ordinal);

        static (LinearAttentionMode, string) Taken(ModeChoice choice) => (choice.Mode, choice.Path);
    }

    [Fact]
    public void Bad_arguments_are_named()
    {
        var (q, k, v, g) = (zeros(2, 5, 4, 3), zeros(2, 5, 2, 3), zeros(2, 5, 2, 6), zeros(2, 5, 2, 3));
        var state = zeros(2, 4, 3, 6);
        Assert.Equal([2, 5, 4, 6], FlaOps.Gla(q, k, v, g, initialState: state).output.shape);
        Assert.Null(FlaOps.Gla(q, k, v, g).finalState);

        Refused("q", () => FlaOps.Gla(q[0], k, v, g));
        Refused("q", () => FlaOps.Gla(q[.., ..0], k[.., ..0], v[.., ..0], g[.., ..0]));
        Refused("q", () => FlaOps.Gla(q.to(float64), k, v, g));
        Refused("k", () => FlaOps.Gla(q, k[.., ..4], v, g));
        Refused("k", () => FlaOps.Gla(q, zeros(2, 5, 2, 4), v, g));
        Refused("k", () => FlaOps.Gla(q, k.to(float16), v, g));
        Refused("H of q", () => FlaOps.Gla(q, zeros(2, 5, 3, 3), v, g));
        Refused("v", () => FlaOps.Gla(q, k, zeros(2, 5, 4, 6), g));
        Refused("v", () => FlaOps.Gla(q, k, zeros(2, 5, 2, 0), g));
        Refused("v", () => FlaOps.Gla(q, k, v.to(bfloat16), g));
        Refused("g", () => FlaOps.Gla(q, k, v, zeros(2, 5, 4, 3)));
        Refused("g", () => FlaOps.Gla(q, k, v, g.to(float64)));
        Refused("g", () => FlaOps.Gla(q, k, v, g.to(META)));
        Refused("initialState", () => FlaOps.Gla(q, k, v, g, initialState: zeros(2, 2, 3, 6)));
        Refused("initialState", () => FlaOps.Gla(q, k, v, g, initialState: state.to(float64)));
        Refused("scale", () => FlaOps.Gla(q, k, v, g, scale: double.NaN));
        Refused("mode", () => FlaOps.Gla(q, k, v, g, (LinearAttentionMode)9));
        Refused("cuSeqlens", () => FlaOps.Gla(q, k, v, g, cuSeqlens: Offsets(0, 5)));
        Refused("cuSeqlens", () => FlaOps.Gla(q[..1], k[..1], v[..1], g[..1], cuSeqlens: Offsets(0, 3, 2, 5)));
        Assert.Throws<ArgumentNullException>("k", () => FlaOps.Gla(q, null!, v, g));

        static Tensor Offsets(params int[] offsets) => tensor(offsets);
        static void Refused(string name, Action call) => Assert.Equal(name, Assert.ThrowsAny<ArgumentException>(call).ParamName);
    }

    private static void Check(string path, Case layout, double outputLimit = Float32Limit, double gradientLimit = Float32Limit)
    {
        using var scope = NewDisposeScope();
        var inputs = layout.Inputs();
        var actual = Run(path, layout, inputs);
        Assert.Equal(layout.Dtype, actual["output"].dtype);
        Assert.Equal(ScalarType.Float32, actual["finalState"].dtype);
        Assert.All(inputs, input => Assert.Equal(input.Value.dtype, actual["d" + input.Key].dtype));
        Gradients.Close(actual, Expected(layout, inputs), outputLimit, gradientLimit, $"{path} {layout}");
    }

    private static Dictionary<string, Tensor> Run(string path, Case layout, Dictionary<string, Tensor> inputs) =>
        Gradients.Of(x => Compute(path, layout, x), inputs);

    private static Dictionary<string, Tensor> Expected(Case layout, Dictionary<string, Tensor> inputs) =>
        Gradients.Of(x => Naive(layout, x), inputs, float64);

    private static (Tensor output, Tensor? finalState) Naive(Case layout, IReadOnlyDictionary<string, Tensor> x) =>
        NaiveGla.Run(x["q"], x["k"], x["v"], x["g"], layout.Scale, x.GetValueOrDefault("initialState"),
            layout.Offsets, layout.Reverse);

    private static (Tensor output, Tensor? finalState) Compute(string path, Case layout, IReadOnlyDictionary<string, Tensor> x) =>
        Compute(path, layout, x["q"], x["k"], x["v"], x["g"], x.GetValueOrDefault("initialState"));

    private static (Tensor output, Tensor? finalState) Compute(
        string path, Case layout, Tensor q, Tensor k, Tensor v, Tensor g, Tensor? initialState)
    {
        var cuSeqlens = layout.Offsets is null ? null : tensor(layout.Offsets);
        return path == "torch"
            ? GlaRecurrent.Run(q, k, v, g, layout.Scale ?? 1 / Math.Sqrt(q.size(3)), initialState,
                Sequences.Of(q.size(0), q.size(1), cuSeqlens), layout.Reverse, outputFinalState: true)
            : FlaOps.Gla(q, k, v, g, Enum.Parse<LinearAttentionMode>(path), layout.Scale, initialState, outputFinalState: true,
                cuSeqlens, layout.Reverse);
    }

    /// <summary>Sizes and options of one comparison.</summary>
    private sealed record Case
    {
        public long Batch { get; init; } = 1;
        public required long Time { get; init; }
        public required long Heads { get; init; }
        public long? KvHeads { get; init; }
        public required long KeySize { get; init; }
        public required long ValueSize { get; init; }
        public string Gates { get; init; } = "usual";
        public bool WithState { get; init; } = true;
        public bool Reverse { get; init; }
        public double? Scale { get; init; }
        public int[]? Offsets { get; init; }
        public ScalarType Dtype { get; init; } = ScalarType.Float32;
        public ScalarType? GateDtype { get; init; }

        /// <summary>q, k, v, g and, if wanted, initialState, always the same.</summary>
        public Dictionary<string, Tensor> Inputs()
        {
            using var generator = new Generator(7);
            Tensor Normal(params long[] sizes) => randn(sizes, generator: generator);
            var kvHeads = KvHeads ?? Heads;
            long[] gateSizes = [Batch, Time, kvHeads, KeySize];
            var gates = Gates switch
            {
                "usual" => nn.functional.logsigmoid(Normal(gateSizes)) / 4,
                "mixed" => where(rand(gateSizes, generator: generator) < 0.05,
                    float.NegativeInfinity, -exp(Normal(gateSizes) * 3 - 3)),
                _ => full(gateSizes, float.Parse(Gates)),
            };
            var inputs = new Dictionary<string, Tensor>
            {
                ["q"] = Normal(Batch, Time, Heads, KeySize).to(Dtype),
                ["k"] = Normal(Batch, Time, kvHeads, KeySize).to(Dtype),
                ["v"] = Normal(Batch, Time, kvHeads, ValueSize).to(Dtype),
                ["g"] = gates.to(GateDtype ?? Dtype),
            };
            if (WithState)
                inputs["initialState"] = Normal(Offsets is null ? Batch : Offsets.Length - 1, Heads, KeySize, ValueSize);
            return inputs;
        }
    }
}
