using System.Text.Json;
using System.Text.Json.Serialization;
using FlaSharp.Layers;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>Softmax attention at some blocks of a model whose other blocks have its own mixer: a hybrid.</summary>
public sealed record HybridAttention
{
    /// <summary>Indices of the blocks, from 0. A block belongs to one entry at most.</summary>
    [JsonRequired]
    public IReadOnlyList<int> Layers { get; init; } = [];

    /// <summary>Query heads H; the head size is the model width divided by it.</summary>
    [JsonRequired]
    public int NumHeads { get; init; }

    /// <summary>Key/value heads Hkv; as many as query heads if absent.</summary>
    public int? NumKvHeads { get; init; }

    /// <summary>Whether the query, key and value projections have a bias.</summary>
    public bool QkvBias { get; init; }

    /// <summary>How many tokens a query sees, its own included; all before it if absent.</summary>
    public int? WindowSize { get; init; }

    /// <summary>The base of the rotary embedding.</summary>
    public double RopeTheta { get; init; } = 10000;

    /// <summary>Fields that mean nothing to FlaSharp; written back.</summary>
    [JsonExtensionData]
    public IDictionary<string, JsonElement>? OtherFields { get; init; }

    internal SoftmaxAttention Create(ModelConfig config, Device? device, ScalarType? dtype) =>
        new(config.HiddenSize, NumHeads, NumKvHeads, window: WindowSize, ropeTheta: RopeTheta, qkvBias: QkvBias,
            device: device, dtype: dtype);
}
