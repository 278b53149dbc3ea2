using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>Passes that go on from a state give what one pass over everything gives.</summary>
public class ContinuationTests
{
    private const double OutputLimit = 1e-5;
    private const double GradientLimit = 5e-5;

    public static TheoryData<string> Names => LayerCases.Names;

    [Theory]
    [MemberData(nameof(Names))]
    public void Any_segmentation_gives_the_output_and_state_of_one_pass(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(2, 40);
        var full = layer.forward(x);
        using var fullState = new LayerState();
        Compare.Close(layer.forward(x, null, null, fullState), full, 0, "one pass with a state");

        int[][] segmentations = [[20, .. Enumerable.Repeat(1, 20)], [.. Enumerable.Repeat(1, 40)], [3, 1, 9, 2, 1, 1, 16, 7],
            [39, 1], [1, 39]];
        foreach (var segments in segmentations)
        {
            using var state = new LayerState();
            var outputs = new List<Tensor>();
            var start = 0;
            foreach (var length in segments)
            {
                outputs.Add(layer.forward(x.narrow(1, start, length), null, null, state));
                start += length;
                Assert.Equal(start, state.SeenTokens);
            }
            var what = $"{name} in segments {string.Join(" ", segments)}";
            Compare.Close(cat(outputs, 1), full, OutputLimit, what);
            for (var row = 0; row < 2; row++)
                foreach (var (tensorName, tensor) in LayerCases.Row(state, row))
                    Compare.Close(tensor, LayerCases.Row(fullState, row)[tensorName], OutputLimit,
                        $"{what}: {tensorName} of row {row}");
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Gradients_flow_through_states_until_detached(string name)
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make(name);
        var weighting = LayerCases.Input(2, 30, seed: 4);
        var (fullInput, fullWeights) = Gradients(x => (layer.forward(x) * weighting).sum());

        var (input, weights) = Gradients(x =>
        {
            using var state = new LayerState();
            return Segments(x, state, detach: false);
        });
        Compare.Close(input, fullInput, GradientLimit, $"{name}: gradient of x");
        foreach (var (parameterName, gradient) in fullWeights)
            Compare.Close(weights[parameterName], gradient, GradientLimit, $"{name}: gradient of {parameterName}");

        // The last segment alone, cut off from the others: what came before gets nothing.
        var (cut, _) = Gradients(x =>
        {
            using var state = new LayerState();
            return Segments(x, state, detach: true);
        });
        Assert.Equal(0, cut.narrow(1, 0, 18).abs().max().ToDouble());
        Assert.NotEqual(0, cut.narrow(1, 18, 12).abs().max().ToDouble());

        Tensor Segments(Tensor x, LayerState state, bool detach)
        {
            var loss = zeros([]);
            foreach (var (start, length) in new[] { (0, 11), (11, 1), (12, 6), (18, 12) })
            {
                if (detach && start == 18)
                {
                    state.Detach();
                    loss = zeros([]);
                }
                loss += (layer.forward(x.narrow(1, start, length), null, null, state) * weighting.narrow(1, start, length)).sum();
            }
            return loss;
        }

        (Tensor, Dictionary<string, Tensor>) Gradients(Func<Tensor, Tensor> loss)
        {
            layer.zero_grad();
            var x = LayerCases.Input(2, 30).requires_grad_();
            loss(x).Backward();
            return (x.grad!, layer.named_parameters().ToDictionary(p => p.name, p => p.parameter.grad!.clone()));
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Rows_of_different_lengths_go_on_together(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var rows = new[] { LayerCases.Input(1, 16, 5), LayerCases.Input(1, 19, 6), LayerCases.Input(1, 12, 7) };

        // A left-padded prompt, two single steps, a right-padded chunk in which the second row has nothing, a step, then a
        // packed chunk and a step.
        using var state = new LayerState();
        var outputs = new List<Tensor>[] { [], [], [] };
        var seen = new long[3];
        Feed([5, 9, 1], left: true);
        Feed([1, 1, 1]);
        Feed([1, 1, 1]);
        Feed([4, 0, 2], left: false);
        Feed([1, 1, 1]);
        Feed([3, 6, 5], packed: true);
        Feed([1, 1, 1]);
        Assert.Equal(seen, state.Lengths);

        for (var b = 0; b < 3; b++)
        {
            var length = seen[b];
            using var alone = new LayerState();
            var expected = layer.forward(rows[b].narrow(1, 0, length), null, null, alone);
            Compare.Close(cat(outputs[b], 1), expected, OutputLimit, $"{name}: row {b}");
            foreach (var (tensorName, tensor) in LayerCases.Row(alone, 0))
                Compare.Close(LayerCases.Row(state, b)[tensorName], tensor, OutputLimit, $"{name}: {tensorName} of row {b}");
        }

        void Feed(long[] lengths, bool left = false, bool packed = false)
        {
            var parts = lengths.Select((length, b) => rows[b].narrow(1, seen[b], length)).ToArray();
            Tensor y;
            if (packed)
            {
                var bounds = LayerCases.Ints(0, lengths[0], lengths[0] + lengths[1], lengths.Sum());
                y = layer.forward(cat(parts, 1), null, bounds, state);
                for (var b = 0; b < 3; b++)
                    outputs[b].Add(y.narrow(1, bounds[b].ToInt64(), lengths[b]));
            }
            else
            {
                var time = lengths.Max();
                var x = full([3, time, LayerCases.HiddenSize], float.NaN); // what stands at padding does not matter
                var mask = zeros([3, time], int64);
                for (var b = 0; b < 3; b++)
                {
                    var start = left ? time - lengths[b] : 0;
                    x[b].narrow(0, start, lengths[b]).copy_(parts[b][0]);
                    mask[b].narrow(0, start, lengths[b]).fill_(1);
                }
                y = layer.forward(x, lengths.All(length => length == 1) ? null : mask, null, state);
                for (var b = 0; b < 3; b++)
                    outputs[b].Add(y.narrow(0, b, 1).narrow(1, left ? time - lengths[b] : 0, lengths[b]));
            }
            for (var b = 0; b < 3; b++)
                seen[b] += lengths[b];
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_clone_goes_its_own_way(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(1, 14);
        using var state = new LayerState();
        layer.forward(x.narrow(1, 0, 8), null, null, state);
        using var clone = state.Clone();
        layer.forward(randn(1, 6, LayerCases.HiddenSize), null, null, state);
        Assert.Equal(8, clone.SeenTokens);
        var y = layer.forward(x.narrow(1, 8, 6), null, null, clone);
        Compare.Close(y, layer.forward(x).narrow(1, 8, 6), OutputLimit, name);
    }

    [Fact]
    public void A_window_keeps_the_cache_small()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make("attention window");
        using var state = new LayerState();
        layer.forward(LayerCases.Input(1, 500), null, null, state);
        for (var i = 0; i < 300; i++)
            layer.forward(LayerCases.Input(1, 1, i), null, null, state);
        Assert.Equal(800, state.SeenTokens);
        Assert.InRange(state.KeyValues!.All().keys.size(1), 4, 80);
    }

    [Fact]
    public void A_state_serves_the_rows_and_the_layer_that_it_was_made_for()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var mamba = LayerCases.Make("mamba");
        using var gla = LayerCases.Make("gla");
        using var state = new LayerState();
        mamba.forward(LayerCases.Input(2, 5), null, null, state);

        var exception = Assert.Throws<ArgumentException>(() => mamba.forward(LayerCases.Input(3, 1), null, null, state));
        Assert.Contains("2 rows", exception.Message);
        Assert.Contains("has 3", exception.Message);
        Assert.Throws<ArgumentException>(() => mamba.forward(LayerCases.Input(1, 6), null, LayerCases.Ints(0, 2, 4, 6), state));
        exception = Assert.Throws<ArgumentException>(() => gla.forward(LayerCases.Input(2, 1), null, null, state));
        Assert.Contains("Mamba", exception.Message);

        Assert.Equal(5, state.SeenTokens); // failed calls leave it as it was
        state.Dispose();
        Assert.True(state.IsEmpty);
        gla.forward(LayerCases.Input(3, 1), null, null, state);
        Assert.Equal([1, 1, 1], state.Lengths);
    }
}
