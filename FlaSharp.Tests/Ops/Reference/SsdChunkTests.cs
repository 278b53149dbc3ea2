using FlaSharp.Ops;
using FlaSharp.Ops.Reference;
using FlaSharp.Tests.Reference;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops.Reference;

public sealed class SsdChunkTests
{
    [Theory]
    [InlineData(2, 1, 1, 1, 1, 1, 1)]
    [InlineData(2, 64, 4, 2, 8, 16, 1)]
    [InlineData(2, 128, 6, 1, 7, 5, 20)]
    [InlineData(3, 150, 4, 4, 16, 9, 40)]
    public void Agrees_with_the_recurrence(long batch, long time, long heads, long groups, long headSize, long stateSize, double decay) =>
        Check(batch, time, heads, groups, headSize, stateSize, decay);

    [Fact]
    public void Agrees_with_the_recurrence_on_the_grid()
    {
        foreach (var (time, heads, stateSize, headSize) in Grid.Cases())
            Check(1, time, heads, heads, headSize, stateSize, 1);
    }

    [Fact]
    public void Packed_sequences_agree_with_the_recurrence() => Check(1, 211, 4, 2, 8, 6, 1, [0, 0, 17, 17, 18, 147, 211, 211]);

    private static void Check(long batch, long time, long heads, long groups, long headSize, long stateSize, double decay, long[]? offsets = null)
    {
        using var scope = NewDisposeScope();
        var random = new Generator(5);
        Tensor Normal(params long[] sizes) => randn(sizes, generator: random);
        var sequences = Sequences.Of(batch, time, offsets is null ? null : tensor(offsets));
        Tensor[] inputs =
        [
            Normal(batch, time, heads, headSize), Normal(batch, time, heads).abs(), -Normal(heads).abs() * decay,
            Normal(batch, time, groups, stateSize), Normal(batch, time, groups, stateSize), Normal(sequences.Count, heads, headSize, stateSize),
        ];
        var (gradOutput, gradState) = (Normal(batch, time, heads, headSize), Normal(sequences.Count, heads, headSize, stateSize));

        var (output, state, gradients) = Run(inputs, ScalarType.Float32, t => SsdChunk.Run(t[0], t[1], t[1] * t[2], t[3], t[4], t[5], sequences));
        var (expectedOutput, expectedState, expected) = Run(inputs, ScalarType.Float64,
            t => NaiveSsd.Run(t[0], t[1], t[2], t[3], t[4], initialState: t[5], offsets: offsets));
        Compare.Close(output, expectedOutput, 1e-5, "output");
        Compare.Close(state, expectedState, 1e-5, "final state");
        foreach (var (i, name) in ((string[])["x", "dt", "a", "b", "c", "initialState"]).Index())
            Compare.Close(gradients[i], expected[i], 5e-5, $"gradient of {name}");

        (Tensor, Tensor, IList<Tensor>) Run(Tensor[] tensors, ScalarType dtype, Func<Tensor[], (Tensor, Tensor)> operation)
        {
            var leaves = Array.ConvertAll(tensors, input => input.detach().to(dtype).requires_grad_());
            var (o, s) = operation(leaves);
            return (o, s, autograd.grad([(o * gradOutput.to(dtype)).sum() + (s * gradState.to(dtype)).sum()], leaves));
        }
    }
}
