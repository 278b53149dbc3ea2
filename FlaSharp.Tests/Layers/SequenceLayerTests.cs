using FlaSharp.Layers;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>What all layers have in common: causality, precision, memory, refusals.</summary>
public class SequenceLayerTests
{
    public static TheoryData<string> Names => LayerCases.Names;

    [Theory]
    [MemberData(nameof(Names))]
    public void Later_tokens_and_other_rows_change_no_bit(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(2, 70);
        var y = layer.forward(x);
        Assert.Equal(x.shape, y.shape);
        var disturbed = x.clone();
        disturbed[0].narrow(0, 41, 29).fill_(9);
        disturbed[1].fill_(9);
        Assert.True(layer.forward(disturbed)[0].narrow(0, 0, 41).equal(y[0].narrow(0, 0, 41)).all().ToBoolean());
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Runs_repeat_bit_by_bit(string name)
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make(name);
        var runs = Enumerable.Range(0, 2).Select(_ =>
        {
            layer.zero_grad();
            var x = LayerCases.Input(2, 70).requires_grad_();
            layer.forward(x).square().sum().Backward();
            return layer.parameters().Select(p => p.grad!.clone()).Append(x.grad!).ToArray();
        }).ToArray();
        for (var i = 0; i < runs[0].Length; i++)
            Assert.True(runs[0][i].equal(runs[1][i]).all().ToBoolean());
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Half_precision_stays_near_float32(string name)
    {
        foreach (var (dtype, limit) in new[] { (bfloat16, 0.02), (float16, 0.003) })
        {
            using var scope = NewDisposeScope();
            using var layer = LayerCases.Make(name);
            layer.to(dtype);
            using var reference = LayerCases.Make(name);
            reference.load_state_dict(layer.state_dict().ToDictionary(entry => entry.Key, entry => entry.Value.to(float32)));

            var x = LayerCases.Input(2, 33).to(dtype).requires_grad_();
            var wide = x.detach().to(float32).requires_grad_();
            var y = layer.forward(x);
            var expected = reference.forward(wide);
            Assert.Equal(dtype, y.dtype);
            Compare.Close(y, expected, limit, $"{name} in {dtype}");
            y.to(float32).square().sum().Backward(); // the mean's gradients would be below the range of float16
            expected.square().sum().Backward();
            Compare.Close(x.grad!, wide.grad!, 2 * limit, $"{name} in {dtype}: gradient of x");
            foreach (var ((parameterName, parameter), (_, wideParameter))
                in layer.named_parameters().Zip(reference.named_parameters()))
            {
                Assert.Equal(parameter.dtype, parameter.grad!.dtype);
                Compare.Close(parameter.grad!, wideParameter.grad!, 3 * limit, $"{name} in {dtype}: gradient of {parameterName}");
            }

            using var noGrad = no_grad();
            using var state = new LayerState();
            var steps = Enumerable.Range(0, 33).Select(t => layer.forward(x.narrow(1, t, 1), null, null, state)).ToArray();
            Compare.Close(cat(steps, 1), expected, limit, $"{name} in {dtype}, step by step");
            Assert.All(LayerCases.Row(state, 0).Values, tensor => Assert.Equal(float32, tensor.dtype));
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Training_and_generation_leave_no_tensor_behind(string name)
    {
        using var layer = LayerCases.Make(name);
        using var optimizer = optim.AdamW(layer.parameters());
        using var input = LayerCases.Input(2, 12);
        using var mask = ones(2, 12);
        mask[1, 0] = tensor(0f);
        Steps(10);
        var before = Tensor.TotalCount;
        Steps(200);
        Assert.InRange(Tensor.TotalCount - before, long.MinValue, 4);

        using var state = new LayerState();
        using var noGrad = no_grad();
        Generate(10);
        before = Tensor.TotalCount;
        Generate(100);
        Assert.InRange(Tensor.TotalCount - before, long.MinValue, 4);

        void Steps(int count)
        {
            for (var i = 0; i < count; i++)
            {
                using var scope = NewDisposeScope();
                optimizer.zero_grad();
                using var passState = new LayerState();
                var loss = layer.forward(input, i % 2 == 0 ? null : mask, null, i % 3 == 0 ? passState : null).square().mean();
                // An unused output's gradient is a tensor without a handle, which TotalCount never takes off again.
                foreach (var stateName in LayerCases.StateNames)
                    if (passState[stateName] is { } used)
                        loss += 0 * used.sum();
                loss.Backward();
                optimizer.step();
            }
        }

        void Generate(int count)
        {
            for (var i = 0; i < count; i++)
            {
                using var scope = NewDisposeScope();
                layer.forward(input.narrow(1, 0, 1), null, null, state);
            }
        }
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Inputs_that_do_not_fit_are_refused_with_the_numbers(string name)
    {
        using var scope = NewDisposeScope();
        using var layer = LayerCases.Make(name);
        Assert.Contains("[2, 25]", Assert.Throws<ArgumentException>(() => layer.forward(zeros(2, 25))).Message);
        Assert.Contains("24", Assert.Throws<ArgumentException>(() => layer.forward(zeros(2, 3, 25))).Message);
        Assert.Throws<ArgumentException>(() => layer.forward(zeros(2, 0, 24)));
        Assert.Throws<ArgumentException>(() => layer.forward(zeros(0, 2, 24)));
        Assert.Contains("Float64", Assert.Throws<ArgumentException>(() => layer.forward(zeros([2, 3, 24], float64))).Message);
        Assert.Throws<ArgumentException>(() => layer.forward(zeros(2, 4, 24), null, LayerCases.Ints(0, 4)));
        Assert.Throws<ArgumentException>(() => layer.forward(zeros(1, 4, 24), null, LayerCases.Ints(0, 5)));
        Assert.Throws<ArgumentNullException>(() => layer.forward(null!));
    }

    [Theory]
    [MemberData(nameof(Names))]
    public void Inputs_may_have_any_strides(string name)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        using var layer = LayerCases.Make(name);
        var x = LayerCases.Input(2, 12);
        var strided = zeros(12, 2, 48).narrow(2, 5, 24).transpose(0, 1);
        strided.copy_(x);
        Compare.Close(layer.forward(strided), layer.forward(x), 1e-6, name);
    }

    [Fact]
    public void Layers_drop_into_a_sequential()
    {
        using var scope = NewDisposeScope();
        using var model = nn.Sequential(
            ("first", LayerCases.Make("mamba")), ("second", LayerCases.Make("mamba2")),
            ("head", nn.Linear(LayerCases.HiddenSize, 3)));
        Assert.Equal([2, 5, 3], model.forward(LayerCases.Input(2, 5)).shape);
        Assert.Contains("first.A_log", model.state_dict().Keys);
    }

    public static TheoryData<string, Func<SequenceLayer>> BadArguments => new()
    {
        { "24.*numHeads = 5", () => new GatedLinearAttention(48, numHeads: 5) },
        { "numHeads = 4.*numKvHeads = 3", () => new GatedLinearAttention(48, numKvHeads: 3) },
        { "relu, sigmoid.*elu.*tanh", () => new GatedLinearAttention(48, featureMap: "tanh") },
        { "swish.*softmax", () => new GatedLinearAttention(48, gateFn: "softmax") },
        { "gateLogitNormalizer", () => new GatedLinearAttention(48, gateLogitNormalizer: 0) },
        { "clampMin.*2", () => new GatedLinearAttention(48, clampMin: 2) },
        { "mode", () => new GatedLinearAttention(48, mode: (LinearAttentionMode)9) },
        { "convSize|kernelSize", () => new GatedLinearAttention(48, useShortConv: true, convSize: 0) },
        { "hiddenSize must be at least 1, but is 0", () => new Mamba(0) },
        { "stateSize", () => new Mamba(8, stateSize: 0) },
        { "silu.*relu", () => new Mamba(8, activation: "relu") },
        { "random, constant.*zero", () => new Mamba(8, timeStepInit: "zero") },
        { "timeStepMin = 0", () => new Mamba(8, timeStepMin: 0) },
        { "48.*headDim = 64|64", () => new Mamba2(24) },
        { "3 \\* 16 is not 2 \\* 32 = 64", () => new Mamba2(32, headDim: 16, numHeads: 3) },
        { "nGroups = 3", () => new Mamba2(32, headDim: 16, nGroups: 3) },
        { "aInitRange", () => new Mamba2(32, headDim: 16, aInitRange: (0, 1)) },
        { "hiddenSize = 64 and numHeads = 3", () => new SoftmaxAttention(64, 3) },
        { "numKvHeads = 3", () => new SoftmaxAttention(64, 4, numKvHeads: 3) },
        { "even.*5.*ropeTheta: null", () => new SoftmaxAttention(64, 4, headDim: 5) },
        { "window", () => new SoftmaxAttention(64, 4, window: 0) },
        { "dropout", () => new SoftmaxAttention(64, 4, dropout: 1) },
    };

    [Theory]
    [MemberData(nameof(BadArguments))]
    public void Options_that_do_not_fit_are_refused_with_the_numbers(string message, Func<SequenceLayer> make) =>
        Assert.Matches(message, Assert.ThrowsAny<ArgumentException>(make).Message);
}
