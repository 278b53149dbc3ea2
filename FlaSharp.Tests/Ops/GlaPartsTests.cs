using FlaSharp.Ops;
using FlaSharp.Tests.TestSupport;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Ops;

/// <summary>Heads in parts: as whole ones, with all gradients.</summary>
public sealed class GlaPartsTests
{
    [Theory]
    [InlineData(4, 8, 3)] // of the keys
    [InlineData(10, 3, 3)] // of the values
    [InlineData(3, 4, 8)] // of both
    [InlineData(10, 8, 1)] // none
    public void Give_what_whole_heads_give(int keys, int values, int calls)
    {
        using var scope = NewDisposeScope();
        manual_seed(1);
        Tensor[] inputs =
        [
            randn(1, 20, 4, 10), randn(1, 20, 2, 10), randn(1, 20, 2, 8), nn.functional.logsigmoid(randn(1, 20, 2, 10)),
            randn(2, 4, 10, 8),
        ];
        var offsets = tensor([0, 7, 20]);
        var count = 0;
        (Tensor, Tensor?) Whole(Tensor q, Tensor k, Tensor v, Tensor g, Tensor? state)
        {
            count++;
            return FlaOps.Gla(q, k, v, g, scale: 0.5, initialState: state, outputFinalState: true, cuSeqlens: offsets);
        }
        Tensor[] Of(Func<Tensor[], (Tensor, Tensor?)> operation)
        {
            var leaves = Array.ConvertAll(inputs, x => x.detach().requires_grad_());
            var (output, state) = operation(leaves);
            (output.square().sum() + state!.square().sum()).Backward();
            return [output.detach(), state.detach(), .. leaves.Select(leaf => leaf.grad!)];
        }
        var expected = Of(x => Whole(x[0], x[1], x[2], x[3], x[4]));
        count = 0;
        var actual = Of(x => new GlaParts(keys, values).Run(x[0], x[1], x[2], x[3], x[4], Whole));
        Assert.Equal(calls, count);
        foreach (var (part, whole) in actual.Zip(expected))
            Compare.Close(part, whole, 1e-6, "in parts");
    }

    [Fact]
    public void Without_final_states_there_is_none()
    {
        using var scope = NewDisposeScope();
        var (x, values) = (randn(1, 5, 1, 6), randn(1, 5, 1, 4));
        var (output, state) = new GlaParts(2, 2).Run(x, x, values, -x.abs(), null, (q, k, v, g, s) =>
            FlaOps.Gla(q, k, v, g, initialState: s));
        Assert.Equal([1, 5, 1, 4], output.shape);
        Assert.Null(state);
    }
}
