using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops.Reference;

public sealed class GlaChunkTests
{
    private static readonly string[] s_names = ["q", "k", "v", "g", "initialState"];

    public static MatrixTheoryData<string, bool> Gates { get; } =
        new(["0", "-1e-3", "-1", "-16", "-80", "-1e4", "-Infinity", "mixed", "with resets"], [false, true]);

    [Theory]
    [MemberData(nameof(Gates))]
    public void Agrees_with_the_recurrence_for_every_gate(string gates, bool fused)
    {
        using var scope = NewDisposeScope();
        Check(Case.Create(batch: 2, time: 100, heads: 2, keyHeads: 2, keySize: 9, valueSize: 5, gates: gates), fused);
    }

    [Theory]
    [InlineData(1, 1, 1, 1, 1)]
    [InlineData(2, 3, 1, 7, 16)]
    [InlineData(15, 4, 2, 16, 1)]
    [InlineData(64, 6, 2, 8, 4)]
    [InlineData(65, 3, 3, 32, 60)]
    [InlineData(128, 8, 4, 64, 64)]
    [InlineData(300, 2, 1, 5, 3)]
    public void Agrees_with_the_recurrence_for_every_shape(int time, int heads, int keyHeads, int keySize, int valueSize)
    {
        using var scope = NewDisposeScope();
        foreach (var withState in (bool[])[false, true])
            foreach (var fused in (bool[])[false, true])
                Check(Case.Create(2, time, heads, keyHeads, keySize, valueSize, "mixed", withState), fused);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void Packed_sequences_agree_with_the_recurrence(bool fused)
    {
        using var scope = NewDisposeScope();
        Check(Case.Create(1, 211, 4, 2, 8, 6, "mixed", offsets: [0, 0, 17, 17, 18, 147, 211, 211]), fused);
        Check(Case.Create(1, 128, 4, 2, 8, 6, "mixed", withState: false, offsets: [0, 128]), fused);
    }

    [Theory]
    [InlineData(false)]
    [InlineData(true)]
    public void A_packed_neighbour_leaks_nothing(bool fused)
    {
        using var scope = NewDisposeScope();
        var inputs = Case.Create(1, 150, 2, 1, 8, 6, "mixed", offsets: [0, 40, 40, 105, 150]);
        var (output, state, gradients) = Run(inputs, fused);
        foreach (var input in inputs.Tensors[..4])
            using (no_grad())
                input!.narrow(1, 40, 65).fill_(float.NaN);
        var (output2, state2, gradients2) = Run(inputs, fused);
        foreach (var (start, length) in (ReadOnlySpan<(int, int)>)[(0, 40), (105, 45)])
        {
            Assert.Equal(output.narrow(1, start, length), output2.narrow(1, start, length));
            for (var i = 0; i < 4; i++)
                Assert.Equal(gradients[i].narrow(1, start, length), gradients2[i].narrow(1, start, length));
        }
        foreach (var s in (ReadOnlySpan<int>)[0, 1, 3])
        {
            Assert.Equal(state[s], state2[s]);
            Assert.Equal(gradients[4][s], gradients2[4][s]);
        }
    }

    [Theory]
    [InlineData(ScalarType.Float16)]
    [InlineData(ScalarType.BFloat16)]
    public void Half_precision_is_rounded_at_the_ends_only(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        var inputs = Case.Create(2, 130, 2, 2, 16, 16, "mixed");
        for (var i = 0; i < 4; i++)
            inputs.Tensors[i] = inputs.Tensors[i]!.detach().to(dtype).requires_grad_();
        Check(inputs, fused: false, limit: 0.004, gradientLimit: 0.005);
    }

    [Fact]
    public void Runs_repeat_bitwise()
    {
        using var scope = NewDisposeScope();
        var inputs = Case.Create(1, 150, 4, 2, 8, 6, "mixed", offsets: [0, 40, 40, 105, 150]);
        var (output, state, gradients) = Run(inputs, fused: false);
        var (output2, state2, gradients2) = Run(inputs, fused: false);
        Assert.Equal(output, output2);
        Assert.Equal(state, state2);
        Assert.Equal(gradients, gradients2);
    }

    private static void Check(Case inputs, bool fused, double limit = 1e-5, double gradientLimit = 1e-5)
    {
        var (output, state, gradients) = Run(inputs, fused);
        var (expectedOutput, expectedState, expectedGradients) = inputs.Recurrence();
        Assert.Equal(inputs.Tensors[2]!.dtype, output.dtype);
        Assert.Equal(ScalarType.Float32, state.dtype);
        Compare.Close(output, expectedOutput, limit, "output");
        Compare.Close(state, expectedState, limit, "final state");
        for (var i = 0; i < gradients.Length; i++)
        {
            // A gate of e^-80 has a gradient of that size, which no sum with gradients near 1 can hold, not even in float64.
            if (s_names[i] == "g" && expectedGradients[i].abs().max().ToDouble() < 1e-20)
                Assert.InRange(gradients[i].abs().max().ToDouble(), 0, 1e-12);
            else
                Compare.Close(gradients[i], expectedGradients[i], gradientLimit, $"gradient of {s_names[i]}");
        }
    }

    private static (Tensor output, Tensor state, Tensor[] gradients) Run(Case inputs, bool fused)
    {
        var t = inputs.Tensors;
        var (output, state) = GlaChunk.Run(t[0]!, t[1]!, t[2]!, t[3]!, Case.Scale, t[4], inputs.Sequences, fused);
        return (output, state, inputs.Gradients(output, state, t));
    }

    /// <summary>Inputs, gradients of the outputs, and the recurrence on them in float64.</summary>
    private sealed class Case
    {
        public const double Scale = 0.3;

        public required Tensor?[] Tensors { get; init; } // q, k, v, g, initialState
        public required Sequences Sequences { get; init; }
        private Tensor? _gradOutput, _gradState;

        public static Case Create(long batch, long time, long heads, long keyHeads, long keySize, long valueSize, string gates,
            bool withState = true, long[]? offsets = null)
        {
            var random = new Generator(7);
            Tensor Normal(params long[] sizes) => randn(sizes, generator: random);
            var sequences = Sequences.Of(batch, time, offsets is null ? null : tensor(offsets));
            long[] gateSizes = [batch, time, keyHeads, keySize];
            var g = gates switch
            {
                "mixed" => -exp(Normal(gateSizes) * 2 - 2),
                "with resets" => where(rand(gateSizes, generator: random) < 0.1, float.NegativeInfinity, -exp(Normal(gateSizes) * 4 - 4)),
                _ => full(gateSizes, float.Parse(gates)),
            };
            Tensor?[] tensors =
            [
                Normal(batch, time, heads, keySize), Normal(batch, time, keyHeads, keySize), Normal(batch, time, keyHeads, valueSize),
                g, withState ? Normal(sequences.Count, heads, keySize, valueSize) : null,
            ];
            foreach (var input in tensors)
                input?.requires_grad_();
            return new Case
            {
                Tensors = tensors,
                Sequences = sequences,
                _gradOutput = Normal(batch, time, heads, valueSize),
                _gradState = Normal(sequences.Count, heads, keySize, valueSize),
            };
        }

        public Tensor[] Gradients(Tensor output, Tensor state, Tensor?[] of)
        {
            var loss = (output * _gradOutput!.to(output.dtype)).sum(output.dtype == float64 ? float64 : float32)
                + (state * _gradState!.to(state.dtype)).sum();
            return [.. autograd.grad([loss], [.. of.OfType<Tensor>()])];
        }

        public (Tensor output, Tensor state, Tensor[] gradients) Recurrence()
        {
            var t = Array.ConvertAll(Tensors, input => input?.detach().to(float64).requires_grad_());
            var (q, k, v, g, initial) = (t[0]!, t[1]!, t[2]!, t[3]!, t[4]);
            var group = q.size(2) / k.size(2);
            Tensor[] Tokens(Tensor x, bool shared, long dim) =>
                (shared ? x.flatten(0, 1).repeat_interleave(group, 1) : x.flatten(0, 1)).unsqueeze(dim).unbind(0);
            var (qt, kt, vt, decay) = (Tokens(q, false, -1), Tokens(k, true, -1), Tokens(v, true, -2), Tokens(g.exp(), true, -1));
            var (outputs, states) = (new List<Tensor>(), new List<Tensor>());
            for (var s = 0; s < Sequences.Count; s++)
            {
                var state = initial?[s] ?? zeros([q.size(2), q.size(3), v.size(3)], dtype: float64);
                for (var i = Sequences.Start(s); i < Sequences.End(s); i++)
                {
                    state = state * decay[i] + kt[i] * vt[i];
                    outputs.Add((qt[i] * state).sum(-2) * Scale);
                }
                states.Add(state);
            }
            var output = stack(outputs).reshape(q.size(0), q.size(1), q.size(2), v.size(3));
            var final = stack(states);
            return (output, final, Gradients(output, final, t));
        }
    }
}
