using System.Text.Json.Serialization;
using FlaSharp.Layers;
using FlaSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>Whose names and fields a transformer has: the computation is the same.</summary>
public enum TransformerNaming
{
    /// <summary>Hugging Face's: model_type <c>llama</c>.</summary>
    Llama,

    /// <summary>flash-linear-attention's: model_type <c>transformer</c>.</summary>
    Fla,
}

/// <summary>
/// A language model of softmax attention with rotary embedding, RMS norms and gated MLPs (Touvron et al. 2023,
/// arXiv:2302.13971). For the options of the layer see <see cref="SoftmaxAttention"/>.
/// </summary>
public sealed record TransformerConfig : ModelConfig
{
    private readonly int? _numKvHeads;
    private readonly int? _headDim;
    private readonly int? _intermediateSize;

    /// <summary>Whose names the parameters and the fields of config.json have.</summary>
    [JsonIgnore]
    public TransformerNaming Naming { get; init; }

    /// <summary>Query heads H.</summary>
    public int NumHeads { get; init; } = 32;

    /// <summary>Key/value heads Hkv; as many as query heads unless set.</summary>
    public int? NumKvHeads { get => _numKvHeads ?? NumHeads; init => _numKvHeads = value; }

    /// <summary>Size of a head; D divided by the number of heads unless set.</summary>
    public int? HeadDim { get => _headDim ?? HiddenSize / Math.Max(NumHeads, 1); init => _headDim = value; }

    /// <summary>Whether the query, key and value projections have a bias (Llama: then the output projection too).</summary>
    public bool QkvBias { get; init; }

    /// <summary>Whether queries and keys are normalised. Fla naming only.</summary>
    public bool QkNorm { get; init; }

    /// <summary>How many tokens a query sees, its own included; all before it if absent. Fla naming only.</summary>
    public int? WindowSize { get; init; }

    /// <summary>The base of the rotary embedding; no rotary embedding if null.</summary>
    public double? RopeTheta { get; init; } = 10000;

    /// <summary>Probability that an attention weight is dropped in training.</summary>
    public double AttentionDropout { get; init; }

    /// <summary>The activation of the MLP.</summary>
    public string HiddenAct { get; init; } = "silu";

    /// <summary>Inner width of the MLP; two thirds of 4 D, rounded up to a multiple of 256, unless set.</summary>
    public int? IntermediateSize
    {
        get => _intermediateSize ?? (HiddenSize * (HiddenRatio ?? 4) * 2 / 3 + 255) / 256 * 256;
        init => _intermediateSize = value;
    }

    /// <summary>Width of the MLP relative to D, before the two thirds of a gated MLP; 4 if absent.</summary>
    public int? HiddenRatio { get; init; }

    /// <summary>Whether the projections of the MLP have a bias. Llama naming only.</summary>
    public bool MlpBias { get; init; }

    /// <summary>For information only: nothing in the model depends on it.</summary>
    public int MaxPositionEmbeddings { get; init; } = 2048;

    /// <inheritdoc/>
    public override string ModelType => Naming == TransformerNaming.Llama ? "llama" : "transformer";

    internal override string Architecture => Naming == TransformerNaming.Llama ? "LlamaForCausalLM" : "TransformerForCausalLM";

    internal override ModuleNames Names => Naming == TransformerNaming.Llama ? ModuleNames.Llama : ModuleNames.Fla;

    internal override void Validate()
    {
        base.Validate();
        Positive(NumHeads);
        Require(NumKvHeads is > 0 && NumHeads % NumKvHeads == 0, NumKvHeads, $"must divide NumHeads = {NumHeads}");
        Require(_headDim is not null || HiddenSize % NumHeads == 0, NumHeads, $"must divide HiddenSize = {HiddenSize}");
        Require(HeadDim is > 0, HeadDim, "must be positive");
        Require(RopeTheta is null || HeadDim % 2 == 0, HeadDim, "must be even for the rotary embedding");
        Require(RopeTheta is null or > 0, RopeTheta, "must be positive, or null for none");
        Require(AttentionDropout is >= 0 and < 1, AttentionDropout, "must be from 0 to below 1");
        Positive(WindowSize);
        Positive(HiddenRatio);
        Positive(IntermediateSize);
        Silu(HiddenAct);
        if (Naming == TransformerNaming.Llama)
        {
            Require(!QkNorm, QkNorm, "is unknown to Hugging Face's Llama: use Naming = TransformerNaming.Fla");
            Require(WindowSize is null, WindowSize, "is unknown to Hugging Face's Llama: use Naming = TransformerNaming.Fla");
            Require(RopeTheta is not null, RopeTheta, "is unknown to Hugging Face's Llama: use Naming = TransformerNaming.Fla");
        }
        else
        {
            Require(HeadDim * NumHeads == HiddenSize, HeadDim,
                $"times NumHeads = {NumHeads} must be HiddenSize = {HiddenSize}, or use Naming = TransformerNaming.Llama");
            Require(!MlpBias, MlpBias, "is unknown to flash-linear-attention: use Naming = TransformerNaming.Llama");
        }
    }

    internal override SequenceLayer CreateMixer(int layer, Device? device, ScalarType? dtype) =>
        new SoftmaxAttention(HiddenSize, NumHeads, NumKvHeads, HeadDim, WindowSize, RopeTheta, QkvBias,
            outputBias: QkvBias && Naming == TransformerNaming.Llama, QkNorm, dropout: AttentionDropout, device: device,
            dtype: dtype);

    internal override GatedMlp CreateMlp(Device? device, ScalarType? dtype) =>
        new(HiddenSize, IntermediateSize, bias: MlpBias, device: device, dtype: dtype);
}
