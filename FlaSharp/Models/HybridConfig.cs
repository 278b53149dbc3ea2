using System.Text.Json.Serialization;
using FlaSharp.Layers;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>A configuration some of whose blocks may have softmax attention in place of their own mixer.</summary>
public abstract record HybridConfig : ModelConfig
{
    /// <summary>The blocks with softmax attention; none if absent. In JSON an object or a list of objects.</summary>
    [JsonConverter(typeof(OneOrManyConverter<HybridAttention>))]
    public IReadOnlyList<HybridAttention>? Attn { get; init; }

    internal override void Validate()
    {
        base.Validate();
        var taken = new HashSet<int>();
        var entries = Attn ?? [];
        for (var i = 0; i < entries.Count; i++)
        {
            var (entry, name) = (entries[i], $"{nameof(Attn)}[{i}]");
            Require(entry.NumHeads > 0 && HiddenSize % entry.NumHeads == 0, entry.NumHeads,
                $"must divide HiddenSize = {HiddenSize}", $"{name}.{nameof(entry.NumHeads)}");
            Require(entry.NumKvHeads is not { } kv || (kv > 0 && entry.NumHeads % kv == 0), entry.NumKvHeads,
                $"must divide NumHeads = {entry.NumHeads}", $"{name}.{nameof(entry.NumKvHeads)}");
            Require(HiddenSize / entry.NumHeads % 2 == 0, HiddenSize / entry.NumHeads,
                "must be even for the rotary embedding", $"{name}: HiddenSize / NumHeads");
            Positive(entry.WindowSize, $"{name}.{nameof(entry.WindowSize)}");
            Positive(entry.RopeTheta, $"{name}.{nameof(entry.RopeTheta)}");
            foreach (var layer in entry.Layers)
            {
                Require(layer >= 0 && layer < NumHiddenLayers, layer,
                    $"must be from 0 to NumHiddenLayers - 1 = {NumHiddenLayers - 1}", $"{name}.{nameof(entry.Layers)}");
                Require(taken.Add(layer), layer, "appears twice: a block has one mixer", $"{name}.{nameof(entry.Layers)}");
            }
        }
    }

    internal sealed override SequenceLayer CreateMixer(int layer, Device? device, ScalarType? dtype) =>
        Attn?.FirstOrDefault(entry => entry.Layers.Contains(layer))?.Create(this, device, dtype) ?? CreateOwnMixer(device, dtype);

    private protected abstract SequenceLayer CreateOwnMixer(Device? device, ScalarType? dtype);
}
