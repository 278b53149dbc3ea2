using System.Text.Json.Nodes;

namespace FlaSharp.Models;

/// <summary>How a model_type's fields in <c>config.json</c> differ from the property names of its configuration.</summary>
internal sealed class ConfigDialect
{
    private static readonly Dictionary<string, ConfigDialect> s_known = new()
    {
        ["gla"] = new ConfigDialect
        {
            Type = typeof(GlaConfig),
            FromFile = json => Replace(json, "attn_mode", "chunk", "auto"),
            ToFile = json => Replace(json, "attn_mode", "auto", "chunk"),
        },
        ["mamba"] = new ConfigDialect
        {
            Type = typeof(MambaConfig),
            Names = [("layer_norm_epsilon", "norm_eps")],
            FromFile = json => RemoveAuto(json, "time_step_rank"),
        },
        ["mamba2"] = new ConfigDialect
        {
            Type = typeof(Mamba2Config),
            Names = [("layer_norm_epsilon", "norm_eps")],
            Alternatives =
            [
                ("dt_min", "time_step_min"), ("dt_max", "time_step_max"), ("dt_init_floor", "time_step_floor"),
                ("dt_limit", "time_step_limit"), ("rmsnorm", "rms_norm"),
            ],
        },
        ["llama"] = new ConfigDialect
        {
            Type = typeof(TransformerConfig),
            Naming = TransformerNaming.Llama,
            Names =
            [
                ("num_attention_heads", "num_heads"), ("num_key_value_heads", "num_kv_heads"), ("rms_norm_eps", "norm_eps"),
                ("attention_bias", "qkv_bias"),
            ],
            FromFile = RopeFromFile,
            ToFile = RopeToFile,
        },
        ["transformer"] = new ConfigDialect { Type = typeof(TransformerConfig), Naming = TransformerNaming.Fla },
    };

    private ConfigDialect() { }

    public static IReadOnlyCollection<string> Known => s_known.Keys;

    public required Type Type { get; init; }

    public TransformerNaming Naming { get; private init; }

    /// <summary>Fields that have another name in the file.</summary>
    private (string file, string property)[] Names { get; init; } = [];

    /// <summary>Further names, which are read but not written.</summary>
    private (string file, string property)[] Alternatives { get; init; } = [];

    private Action<JsonObject>? FromFile { get; init; }

    private Action<JsonObject>? ToFile { get; init; }

    public static ConfigDialect Of(string modelType) => s_known[modelType];

    /// <summary>From the file's fields to the properties'.</summary>
    public void Normalize(JsonObject json)
    {
        foreach (var (file, property) in Names.Concat(Alternatives))
            Rename(json, file, property);
        FromFile?.Invoke(json);
    }

    /// <summary>From the properties' fields to the file's.</summary>
    public void Denormalize(JsonObject json)
    {
        ToFile?.Invoke(json);
        foreach (var (file, property) in Names)
            Rename(json, property, file);
    }

    public string NameInFile(string property) => Names.FirstOrDefault(name => name.property == property).file ?? property;

    private static void Rename(JsonObject json, string from, string to)
    {
        if (json.Remove(from, out var value))
            json[to] = value;
    }

    private static void Replace(JsonObject json, string field, string from, string to)
    {
        if (IsText(json[field], from))
            json[field] = to;
    }

    private static void RemoveAuto(JsonObject json, string field)
    {
        if (IsText(json[field], "auto"))
            json.Remove(field);
    }

    private static bool IsText(JsonNode? node, string text) =>
        node is JsonValue value && value.TryGetValue<string>(out var found) && found == text;

    /// <summary>The rotary embedding is in rope_parameters, or, in older files, in rope_theta and rope_scaling.</summary>
    private static void RopeFromFile(JsonObject json)
    {
        json.Remove("rope_parameters", out var parameters);
        json.Remove("rope_scaling", out var scaling);
        foreach (var (name, node) in new[] { ("rope_parameters", parameters), ("rope_scaling", scaling) })
            if (node is not null
                && (node is not JsonObject rope || !IsText(rope["rope_type"] ?? rope["type"] ?? "default", "default")))
                throw new NotSupportedException(
                    $"the field {name} has the value {node.ToJsonString()}; of rotary embeddings only rope_type \"default\" is " +
                    "supported.");
        if (parameters?["rope_theta"] is { } theta)
            json["rope_theta"] = theta.DeepClone();
    }

    /// <summary>Both forms, for readers old and new.</summary>
    private static void RopeToFile(JsonObject json) =>
        json["rope_parameters"] = new JsonObject { ["rope_theta"] = json["rope_theta"]?.DeepClone(), ["rope_type"] = "default" };
}
