using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;
using Padding = FlaSharp.Layers.Padding;

namespace FlaSharp.Tests.Layers;

/// <summary>Padding and packing change nothing: each row is computed as if it were alone.</summary>
public class PaddingTests
{
    private const double OutputLimit = 1e-5;
    private const double GradientLimit = 5e-5;

    // 1 at tokens: left, right and interior padding, one token, and a full row.
    private static readonly string[] s_masks = ["000011111111", "111111100000", "100110011010", "000000010000", "111111111111"];

    public static TheoryData<string> Names => LayerCases.Names;

    [Theory]
    [MemberData(nameof(Names))]
    public void Padded_rows_equal_the_rows_without_padding(string name)
    {
        foreach (var training in new[] { true, false })
            foreach (var masks in new[] { s_masks, [s_masks[0]], [s_masks[1]], [s_masks[2]], [s_masks[3]],
                ["000000000000", s_masks[2]] })
            {
                using var scope = NewDisposeScope();
                using var layer = LayerCases.Make(name);
                layer.train(training);
                CheckAgainstSeparateRows(layer, masks, name);
            }
    }

    private static void CheckAgainstSeparateRows(SequenceLayer layer, string[] masks, string name)
    {
        var time = masks[0].Length;
        var x = LayerCases.Input(masks.Length, time).requires_grad_();
        var weighting = LayerCases.Input(masks.Length, time, seed: 4);
        var mask = tensor(masks.SelectMany(row => row.Select(c => c - '0')).ToArray()).view(masks.Length, time);
        var y = layer.forward(x, mask);
        (y * weighting).sum().Backward();
        var weights = layer.named_parameters().ToDictionary(p => p.name, p => p.parameter.grad!.clone());
        layer.zero_grad();

        for (var b = 0; b < masks.Length; b++)
        {
            var tokens = tensor(masks[b].Select((c, t) => (c, t)).Where(p => p.c == '1').Select(p => (long)p.t).ToArray());
            var pads = tensor(masks[b].Select((c, t) => (c, t)).Where(p => p.c == '0').Select(p => (long)p.t).ToArray());
            if (pads.size(0) > 0)
            {
                Assert.Equal(0, y[b].index_select(0, pads).abs().max().ToDouble());
                Assert.Equal(0, x.grad![b].index_select(0, pads).abs().max().ToDouble());
            }
            if (tokens.size(0) == 0)
                continue;
            var row = x.detach()[b].index_select(0, tokens).unsqueeze(0).requires_grad_();
            var expected = layer.forward(row);
            (expected * weighting[b].index_select(0, tokens)).sum().Backward();
            Compare.Close(y[b].index_select(0, tokens).unsqueeze(0), expected, OutputLimit, $"{name}: row {b}");
            Compare.Close(x.grad![b].index_select(0, tokens).unsqueeze(0), row.grad!, GradientLimit,
                $"{name}: gradient of row {b}");
        }
        foreach (var (parameterName, parameter) in layer.named_parameters())
            Compare.Close(weights[parameterName], parameter.grad!, GradientLimit, $"{name}: gradient of {parameterName}");
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Packed_sequences_equal_separate_ones_and_do_not_see_each_other(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        int[] bounds = [0, 7, 7, 8, 20, 33];
        var x = LayerCases.Input(1, 33);
        using var state = new LayerState();
        var y = layer.forward(x, null, tensor(bounds), state);
        Assert.Equal([7, 0, 1, 12, 13], state.Lengths);
        for (var s = 0; s < bounds.Length - 1; s++)
        {
            var (start, length) = (bounds[s], bounds[s + 1] - bounds[s]);
            if (length == 0)
                continue;
            using var alone = new LayerState();
            Compare.Close(y.narrow(1, start, length), layer.forward(x.narrow(1, start, length), null, null, alone), OutputLimit,
                $"{name}: sequence {s}");
            foreach (var (tensorName, tensor) in LayerCases.Row(alone, 0))
                Compare.Close(LayerCases.Row(state, s)[tensorName], tensor, OutputLimit, $"{name}: {tensorName} of sequence {s}");

            var disturbed = x.clone();
            disturbed.narrow(1, 0, start).fill_(50);
            disturbed.narrow(1, start + length, 33 - start - length).fill_(-50);
            var same = layer.forward(disturbed, null, tensor(bounds)).narrow(1, start, length);
            Assert.True(same.equal(y.narrow(1, start, length)).all().ToBoolean(), $"{name}: sequence {s} sees its neighbours");
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void A_mask_without_padding_changes_no_bit(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(2, 9);
        Assert.True(layer.forward(x, ones(2, 9, @bool)).equal(layer.forward(x)).all().ToBoolean());
    }

    [Fact]
    public void Nothing_but_padding_gives_zeros_and_leaves_the_state()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make("mamba");
        using var state = new LayerState();
        Assert.Equal(0, layer.forward(LayerCases.Input(2, 4), zeros(2, 4), null, state).abs().max().ToDouble());
        Assert.True(state.IsEmpty);
    }

    [Theory]
    [InlineData(ScalarType.Bool)]
    [InlineData(ScalarType.Byte)]
    [InlineData(ScalarType.Int32)]
    [InlineData(ScalarType.Int64)]
    [InlineData(ScalarType.Float32)]
    [InlineData(ScalarType.BFloat16)]
    public void Masks_come_in_any_dtype(ScalarType dtype)
    {
        using var scope = NewDisposeScope();
        using var mask = LayerCases.Ints(0, 1, 1, 1, 0, 1).view(2, 3).to(dtype);
        var padding = Padding.From(mask, zeros(2, 3, 4))!;
        Assert.Equal(4, padding.TokenCount);
        Assert.Equal([0L, 2, 4], padding.CuSeqlens.data<long>().ToArray());
        var x = randn(2, 3, 4);
        var packed = padding.Pack(x);
        Assert.Equal([1, 4, 4], packed.shape);
        Assert.True(packed[0, 3].equal(x[1, 2]).all().ToBoolean());
        Assert.True(padding.Unpack(packed).equal(x * mask.to(float32).unsqueeze(-1)).all().ToBoolean());
    }

    [Fact]
    public void A_transposed_mask_is_read_in_order()
    {
        using var scope = NewDisposeScope();
        var mask = LayerCases.Ints(1, 0, 1, 1, 1, 1).view(3, 2).t(); // rows 111 and 011
        Assert.Equal([0L, 3, 5], Padding.From(mask, zeros(2, 3, 4))!.CuSeqlens.data<long>().ToArray());
    }

    [Fact]
    public void Other_masks_are_refused()
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make("gla");
        var x = LayerCases.Input(2, 4);
        Assert.Contains("[2, 4]", Assert.Throws<ArgumentException>(() => layer.forward(x, ones(2, 5))).Message);
        Assert.Throws<ArgumentException>(() => layer.forward(x, ones(2, 1, 4, 4)));
        Assert.Contains("-1", Assert.Throws<ArgumentException>(() => layer.forward(x, full([2, 4], -1))).Message);
        Assert.Throws<ArgumentException>(() => layer.forward(x, full([2, 4], float.NaN)));
        Assert.Throws<ArgumentException>(() => layer.forward(LayerCases.Input(1, 4), ones(1, 4), LayerCases.Ints(0, 4)));
    }
}
