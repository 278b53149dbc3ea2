using FlaSharp.Layers;
using FlaSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// A language model of gated linear attention (Yang et al. 2023, arXiv:2312.06635), in flash-linear-attention's form:
/// model_type <c>gla</c>. For the options of the layer see <see cref="GatedLinearAttention"/>.
/// </summary>
public sealed record GlaConfig : HybridConfig
{
    /// <summary>Query heads H.</summary>
    public int NumHeads { get; init; } = 4;

    /// <summary>Key/value heads Hkv; as many as query heads if absent.</summary>
    public int? NumKvHeads { get; init; }

    /// <summary>Width of all query heads together, relative to D.</summary>
    public double ExpandK { get; init; } = 0.5;

    /// <summary>Width of all value heads together, relative to D.</summary>
    public double ExpandV { get; init; } = 1.0;

    /// <summary>
    /// The algorithm. A file's <c>chunk</c> is read as Auto, because flash-linear-attention too takes the recurrence for short
    /// sequences then; Auto is written as <c>chunk</c>.
    /// </summary>
    public LinearAttentionMode AttnMode { get; init; }

    /// <summary>The function applied to queries and keys, such as relu or silu; none if absent.</summary>
    public string? FeatureMap { get; init; }

    /// <summary>Whether queries, keys and values go through a short causal convolution.</summary>
    public bool UseShortConv { get; init; }

    /// <summary>Width W of the convolution.</summary>
    public int ConvSize { get; init; } = 4;

    /// <summary>Whether the convolution has a bias.</summary>
    public bool ConvBias { get; init; }

    /// <summary>Whether the output is gated.</summary>
    public bool UseOutputGate { get; init; } = true;

    /// <summary>The logarithm of the forget gate is divided by this.</summary>
    public double GateLogitNormalizer { get; init; } = 16;

    /// <summary>Rank of the forget gate's projection.</summary>
    public int GateLowRankDim { get; init; } = 16;

    /// <summary>Lower bound of the logarithm of the forget gate; none if absent.</summary>
    public double? ClampMin { get; init; }

    /// <summary>Whether the norm of the layer's output has a weight.</summary>
    public bool ElementwiseAffine { get; init; } = true;

    /// <summary>Whether the norm and the output gate are one module (<c>g_norm_swish_gate</c>, else <c>g_norm</c>).</summary>
    public bool FuseNorm { get; init; } = true;

    /// <summary>The activation of the output gate and the MLP.</summary>
    public string HiddenAct { get; init; } = "swish";

    /// <summary>Width of the MLP relative to D, before the two thirds of a gated MLP; 4 if absent.</summary>
    public int? HiddenRatio { get; init; }

    /// <summary>Inner width of the MLP; from <see cref="HiddenRatio"/> if absent.</summary>
    public int? IntermediateSize { get; init; }

    /// <summary>For information only: nothing in the model depends on it.</summary>
    public int MaxPositionEmbeddings { get; init; } = 2048;

    /// <inheritdoc/>
    public override string ModelType => "gla";

    internal override string Architecture => "GLAForCausalLM";

    internal override ModuleNames Names => ModuleNames.Fla;

    internal override void Validate()
    {
        base.Validate();
        Positive(NumHeads);
        Require(NumKvHeads is not { } kv || (kv > 0 && NumHeads % kv == 0), NumKvHeads, $"must divide NumHeads = {NumHeads}");
        Positive(ExpandK);
        Positive(ExpandV);
        var (keys, values) = ((int)(HiddenSize * ExpandK), (int)(HiddenSize * ExpandV));
        var rule = $"must be a multiple of NumHeads = {NumHeads}";
        Require(keys > 0 && keys % NumHeads == 0, keys, rule, "HiddenSize * ExpandK");
        Require(values > 0 && values % NumHeads == 0, values, rule, "HiddenSize * ExpandV");
        Positive(ConvSize);
        Positive(GateLowRankDim);
        Positive(GateLogitNormalizer);
        Positive(HiddenRatio);
        Positive(IntermediateSize);
        Silu(HiddenAct);
    }

    private protected override SequenceLayer CreateOwnMixer(Device? device, ScalarType? dtype) =>
        new GatedLinearAttention(HiddenSize, NumHeads, ExpandK, ExpandV, AttnMode, NumKvHeads, FeatureMap, UseShortConv, ConvSize,
            ConvBias, UseOutputGate, HiddenAct, GateLogitNormalizer, GateLowRankDim, ClampMin, NormEps, ElementwiseAffine,
            FuseNorm, device: device, dtype: dtype);

    internal override GatedMlp CreateMlp(Device? device, ScalarType? dtype) =>
        new(HiddenSize, IntermediateSize, HiddenRatio ?? 4, device: device, dtype: dtype);
}
