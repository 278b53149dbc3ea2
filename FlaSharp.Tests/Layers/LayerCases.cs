using FlaSharp.Layers;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Layers;

/// <summary>One small layer per kind and notable option, with fixed random weights.</summary>
internal static class LayerCases
{
    public const int HiddenSize = 24;

    public static readonly string[] StateNames = ["recurrent", "conv", "q_conv", "k_conv", "v_conv"];

    private static readonly Dictionary<string, Func<SequenceLayer>> s_make = new()
    {
        ["gla"] = () => new GatedLinearAttention(HiddenSize, numHeads: 2),
        ["gla conv"] = () => new GatedLinearAttention(HiddenSize, numHeads: 4, expandK: 1, numKvHeads: 2, featureMap: "elu",
            useShortConv: true, convSize: 3, convBias: true, gateLogitNormalizer: 2),
        ["mamba"] = () => new Mamba(HiddenSize, stateSize: 5),
        ["mamba2"] = () => new Mamba2(HiddenSize, headDim: 12, stateSize: 7, nGroups: 2),
        ["mamba2 plain"] = () => new Mamba2(HiddenSize, headDim: 8, stateSize: 4, rmsNorm: false, dHasHeadDim: true,
            timeStepLimit: (0.002, 0.05)),
        ["attention"] = () => new SoftmaxAttention(HiddenSize, 3),
        ["attention window"] = () => new SoftmaxAttention(HiddenSize, 4, numKvHeads: 2, headDim: 10, window: 5, qkvBias: true,
            qkNorm: true),
        ["attention plain"] = () => new SoftmaxAttention(HiddenSize, 2, window: 2, ropeTheta: null),
    };

    public static TheoryData<string> Names => [.. s_make.Keys];

    public static SequenceLayer Make(string name)
    {
        manual_seed(1);
        var layer = s_make[name]();
        using var noGrad = no_grad();
        foreach (var (parameterName, parameter) in layer.named_parameters())
            if (parameterName.EndsWith("norm.weight", StringComparison.Ordinal) || parameterName == "D")
                parameter.uniform_(0.5, 1.5); // a weight of 1 would hide a missing one
        return layer;
    }

    public static Tensor Input(long batch, long time, int seed = 3) =>
        randn([batch, time, HiddenSize], generator: new Generator((ulong)seed));

    public static Tensor Ints(params long[] values) => tensor(values);

    /// <summary>What a state holds of one row, by name.</summary>
    public static Dictionary<string, Tensor> Row(LayerState state, int row)
    {
        var tensors = new Dictionary<string, Tensor>();
        foreach (var name in StateNames)
            if (state[name] is { } tensor)
                tensors[name] = tensor[row].detach();
        return tensors;
    }
}
