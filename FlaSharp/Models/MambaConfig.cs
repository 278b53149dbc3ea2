using System.Text.Json.Serialization;
using FlaSharp.Layers;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// A Mamba language model (Gu and Dao 2023, arXiv:2312.00752), in Hugging Face's form: model_type <c>mamba</c>. Its blocks have
/// no MLP. For the options of the layer see <see cref="Layers.Mamba"/>.
/// </summary>
public sealed record MambaConfig : HybridConfig
{
    private readonly int? _intermediateSize;
    private readonly int? _timeStepRank;

    /// <summary>A configuration with Hugging Face's defaults.</summary>
    public MambaConfig()
    {
        VocabSize = 50280;
        HiddenSize = 768;
        NumHiddenLayers = 32;
        NormEps = 1e-5;
        InitializerRange = 0.1;
        TieWordEmbeddings = true;
        BosTokenId = 0;
        EosTokenIds = [0];
        PadTokenId = 0;
    }

    /// <summary>State size N.</summary>
    public int StateSize { get; init; } = 16;

    /// <summary>Inner width E relative to D.</summary>
    public int Expand { get; init; } = 2;

    /// <summary>Inner width E; <see cref="Expand"/> times D unless set.</summary>
    public int IntermediateSize { get => _intermediateSize ?? Expand * HiddenSize; init => _intermediateSize = value; }

    /// <summary>Width W of the convolution.</summary>
    public int ConvKernel { get; init; } = 4;

    /// <summary>Whether the input and output projections have a bias.</summary>
    public bool UseBias { get; init; }

    /// <summary>Whether the convolution has a bias.</summary>
    public bool UseConvBias { get; init; } = true;

    /// <summary>The activation.</summary>
    public string HiddenAct { get; init; } = "silu";

    /// <summary>Rank of the step size's projection; D / 16, rounded up, unless set. In JSON also <c>"auto"</c>.</summary>
    public int TimeStepRank { get => _timeStepRank ?? (HiddenSize + 15) / 16; init => _timeStepRank = value; }

    /// <summary>Scale of the initial weights of the step size's projection.</summary>
    public double TimeStepScale { get; init; } = 1.0;

    /// <summary>Least initial step size.</summary>
    public double TimeStepMin { get; init; } = 0.001;

    /// <summary>Greatest initial step size.</summary>
    public double TimeStepMax { get; init; } = 0.1;

    /// <summary>Initial step sizes below this are raised to it.</summary>
    public double TimeStepFloor { get; init; } = 1e-4;

    /// <summary>How the step size's projection is initialised: random or constant.</summary>
    public string TimeStepInitScheme { get; init; } = "random";

    /// <summary>Whether the residual stream of a half-precision model is float32.</summary>
    [JsonPropertyName("residual_in_fp32")]
    public bool ResidualInFp32 { get; init; } = true;

    /// <inheritdoc/>
    public override string ModelType => "mamba";

    internal override string Architecture => "MambaForCausalLM";

    internal override ModuleNames Names => ModuleNames.Mamba;

    internal override bool Float32Residual => ResidualInFp32;

    internal override void Validate()
    {
        base.Validate();
        Positive(StateSize);
        Positive(Expand);
        Positive(IntermediateSize);
        Positive(ConvKernel);
        Positive(TimeStepRank);
        Positive(TimeStepMin);
        Require(TimeStepMax >= TimeStepMin, TimeStepMax, $"must be at least TimeStepMin = {TimeStepMin}");
        Positive(TimeStepFloor);
        Silu(HiddenAct);
    }

    private protected override SequenceLayer CreateOwnMixer(Device? device, ScalarType? dtype) =>
        new Mamba(HiddenSize, StateSize, ConvKernel, Expand, IntermediateSize, TimeStepRank, TimeStepScale, TimeStepMin,
            TimeStepMax, TimeStepFloor, TimeStepInitScheme, UseConvBias, UseBias, HiddenAct, device: device, dtype: dtype);
}
