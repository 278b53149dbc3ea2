using System.Text.Json.Serialization;
using FlaSharp.Layers;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// A Mamba-2 language model (Dao and Gu 2024, arXiv:2405.21060), in Hugging Face's form: model_type <c>mamba2</c>. Its blocks
/// have no MLP. For the options of the layer see <see cref="Layers.Mamba2"/>.
/// </summary>
public sealed record Mamba2Config : HybridConfig
{
    private readonly int? _numHeads;

    /// <summary>A configuration with Hugging Face's defaults, except that the number of heads follows from the width.</summary>
    public Mamba2Config()
    {
        VocabSize = 32768;
        HiddenSize = 4096;
        NumHiddenLayers = 64;
        NormEps = 1e-5;
        InitializerRange = 0.1;
        BosTokenId = 0;
        EosTokenIds = [2];
        PadTokenId = 1;
    }

    /// <summary>State size N.</summary>
    public int StateSize { get; init; } = 128;

    /// <summary>Head size P.</summary>
    public int HeadDim { get; init; } = 64;

    /// <summary>Heads H; the inner width divided by the head size unless set.</summary>
    public int NumHeads { get => _numHeads ?? Expand * HiddenSize / Math.Max(HeadDim, 1); init => _numHeads = value; }

    /// <summary>Groups G that share the input and output matrices B and C.</summary>
    public int NGroups { get; init; } = 8;

    /// <summary>Inner width relative to D.</summary>
    public int Expand { get; init; } = 2;

    /// <summary>Width W of the convolution.</summary>
    public int ConvKernel { get; init; } = 4;

    /// <summary>Whether the input and output projections have a bias.</summary>
    public bool UseBias { get; init; }

    /// <summary>Whether the convolution has a bias.</summary>
    public bool UseConvBias { get; init; } = true;

    /// <summary>The activation.</summary>
    public string HiddenAct { get; init; } = "silu";

    /// <summary>Whether the output is normalised before the last projection.</summary>
    public bool RmsNorm { get; init; } = true;

    /// <summary>Whether the norm comes before the gate.</summary>
    public bool NormBeforeGate { get; init; }

    /// <summary>Range of the initial decay rates; from 1 to 16 if absent.</summary>
    [JsonPropertyName("A_init_range"), JsonConverter(typeof(RangeConverter))]
    public (double Min, double Max)? AInitRange { get; init; }

    /// <summary>Whether the skip weight D has one value per channel in place of one per head.</summary>
    [JsonPropertyName("D_has_hdim")]
    public bool DHasHeadDim { get; init; }

    /// <summary>Least initial step size.</summary>
    public double TimeStepMin { get; init; } = 0.001;

    /// <summary>Greatest initial step size.</summary>
    public double TimeStepMax { get; init; } = 0.1;

    /// <summary>Initial step sizes below this are raised to it.</summary>
    public double TimeStepFloor { get; init; } = 1e-4;

    /// <summary>Step sizes are clamped to this range.</summary>
    [JsonConverter(typeof(RangeConverter))]
    public (double Min, double Max)? TimeStepLimit { get; init; } = (0, double.PositiveInfinity);

    /// <summary>Whether the residual stream of a half-precision model is float32.</summary>
    [JsonPropertyName("residual_in_fp32")]
    public bool ResidualInFp32 { get; init; } = true;

    /// <inheritdoc/>
    public override string ModelType => "mamba2";

    internal override string Architecture => "Mamba2ForCausalLM";

    internal override ModuleNames Names => ModuleNames.Mamba;

    internal override bool Float32Residual => ResidualInFp32;

    internal override void Validate()
    {
        base.Validate();
        Positive(StateSize);
        Positive(HeadDim);
        Positive(Expand);
        Positive(NGroups);
        Require(NumHeads * HeadDim == Expand * HiddenSize, NumHeads,
            $"times HeadDim = {HeadDim} must be Expand * HiddenSize = {Expand * HiddenSize}");
        Require(NumHeads % NGroups == 0, NGroups, $"must divide NumHeads = {NumHeads}");
        Positive(ConvKernel);
        Positive(TimeStepMin);
        Require(TimeStepMax >= TimeStepMin, TimeStepMax, $"must be at least TimeStepMin = {TimeStepMin}");
        Positive(TimeStepFloor);
        Require(TimeStepLimit is not { } limit || (limit.Min >= 0 && limit.Max > limit.Min), TimeStepLimit,
            "must be a range of numbers that are not negative");
        Require(AInitRange is not { } range || (range.Min > 0 && range.Max >= range.Min), AInitRange,
            "must be a range of positive numbers");
        Silu(HiddenAct);
    }

    private protected override SequenceLayer CreateOwnMixer(Device? device, ScalarType? dtype) =>
        new Mamba2(HiddenSize, HeadDim, StateSize, Expand, NumHeads, NGroups, ConvKernel, AInitRange, TimeStepMin, TimeStepMax,
            TimeStepFloor, TimeStepLimit, DHasHeadDim, RmsNorm, NormBeforeGate, NormEps, UseConvBias, UseBias, HiddenAct,
            device: device, dtype: dtype);
}
