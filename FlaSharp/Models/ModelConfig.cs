using System.Runtime.CompilerServices;
using System.Text.Json;
using System.Text.Json.Serialization;
using FlaSharp.Layers;
using FlaSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// The architecture of a language model: what Hugging Face keeps in <c>config.json</c>. Property names in snake case are its
/// field names, and a field that a file lacks has Hugging Face's default.
/// </summary>
public abstract record ModelConfig
{
    /// <summary>Number of tokens. Ids are from 0 up to, not including, this.</summary>
    [JsonRequired]
    public int VocabSize { get; init; } = 32000;

    /// <summary>Model width D.</summary>
    [JsonRequired]
    public int HiddenSize { get; init; } = 2048;

    /// <summary>Number of blocks.</summary>
    [JsonRequired]
    public int NumHiddenLayers { get; init; } = 24;

    /// <summary>The epsilon of every RMS norm.</summary>
    public double NormEps { get; init; } = 1e-6;

    /// <summary>Whether the logits are computed with the embedding matrix. There is no lm_head parameter then.</summary>
    public bool TieWordEmbeddings { get; init; }

    /// <summary>Standard deviation of the initial embeddings and linear weights.</summary>
    public double InitializerRange { get; init; } = 0.02;

    /// <summary>
    /// Whether the initial weights that write to the residual stream are divided by the square root of their number in the model
    /// (GPT-2, Radford et al. 2019).
    /// </summary>
    public bool RescalePrenormResidual { get; init; }

    /// <summary>The token a text starts with.</summary>
    public int? BosTokenId { get; init; } = 1;

    /// <summary>The tokens that end a text; generation stops at them. In JSON a number or a list.</summary>
    [JsonPropertyName("eos_token_id"), JsonConverter(typeof(OneOrManyConverter<int>))]
    public IReadOnlyList<int>? EosTokenIds { get; init; } = [2];

    /// <summary>The token that fills up shorter rows of a batch.</summary>
    public int? PadTokenId { get; init; }

    /// <summary>Fields of config.json that mean nothing to FlaSharp; written back when the model is saved.</summary>
    [JsonExtensionData]
    public IDictionary<string, JsonElement>? OtherFields { get; init; }

    /// <summary>The <c>model_type</c> in config.json: gla, mamba, mamba2, llama or transformer.</summary>
    [JsonIgnore]
    public abstract string ModelType { get; }

    /// <summary>How Hugging Face calls the class of the model.</summary>
    internal abstract string Architecture { get; }

    /// <summary>The module names in the state dict.</summary>
    internal abstract ModuleNames Names { get; }

    /// <summary>Whether the residual stream is float32 in a half-precision model.</summary>
    internal virtual bool Float32Residual => false;

    /// <summary>Reads a configuration.</summary>
    /// <param name="path">A <c>config.json</c>.</param>
    /// <exception cref="InvalidDataException">
    /// The file is no JSON, lacks a field, or has an unknown model_type or a value that makes no sense. The message names the
    /// file, the field and the value.
    /// </exception>
    public static ModelConfig Load(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        return ConfigJson.Read(File.ReadAllText(path), path);
    }

    /// <summary>The configuration in the form of Hugging Face's <c>config.json</c>.</summary>
    public string ToJson() => ConfigJson.Write(this);

    /// <summary>Throws if a value makes no sense.</summary>
    /// <exception cref="ArgumentException">Names the property, its value and what is allowed.</exception>
    internal virtual void Validate()
    {
        Positive(VocabSize);
        Positive(HiddenSize);
        Positive(NumHiddenLayers);
        Positive(NormEps);
        Require(InitializerRange >= 0 && double.IsFinite(InitializerRange), InitializerRange, "must not be negative");
        TokenId(BosTokenId);
        foreach (var id in EosTokenIds ?? [])
            TokenId(id, nameof(EosTokenIds));
    }

    /// <summary>The token mixer of a block.</summary>
    internal abstract SequenceLayer CreateMixer(int layer, Device? device, ScalarType? dtype);

    /// <summary>The MLP of a block, if it has one.</summary>
    internal virtual GatedMlp? CreateMlp(Device? device, ScalarType? dtype) => null;

    /// <summary>A number or nothing.</summary>
    private protected static void Positive(double? value, [CallerArgumentExpression(nameof(value))] string name = "") =>
        Require(value is null || (value > 0 && double.IsFinite(value.Value)), value, "must be positive", name);

    private protected static void Require(
        bool condition, object? value, string rule, [CallerArgumentExpression(nameof(value))] string name = "")
    {
        if (!condition)
            throw new ArgumentException($"{name} = {value ?? "null"} {rule}.", name);
    }

    private protected static void Silu(string activation, [CallerArgumentExpression(nameof(activation))] string name = "") =>
        Require(activation is "silu" or "swish", activation, "is not supported: use silu (also called swish)", name);

    private void TokenId(int? id, [CallerArgumentExpression(nameof(id))] string name = "") =>
        Require(id is null || (id >= 0 && id < VocabSize), id, $"must be from 0 to VocabSize - 1 = {VocabSize - 1}", name);
}
