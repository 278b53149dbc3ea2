using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using System.Text.Json.Serialization.Metadata;
using System.Text.RegularExpressions;

namespace FlaSharp.Models;

/// <summary>Reads and writes Hugging Face's <c>config.json</c>.</summary>
internal static partial class ConfigJson
{
    private const string TypeField = "model_type";

    private static readonly JsonSerializerOptions s_options = new()
    {
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.SnakeCaseLower, allowIntegerValues: false) },
        TypeInfoResolver = new DefaultJsonTypeInfoResolver(), // named here, so that it works where the default is switched off
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping, // the file is not put into web pages
        WriteIndented = true,
    };

    public static ModelConfig Read(string text, string path)
    {
        var json = Parse(text, path);
        var dialect = ConfigDialect.Of(ReadType(json, path));
        try
        {
            dialect.Normalize(json);
            var config = (ModelConfig)json.Deserialize(dialect.Type, s_options)!;
            if (config is TransformerConfig transformer)
                config = transformer with { Naming = dialect.Naming };
            config.Validate();
            return config;
        }
        catch (JsonException exception)
        {
            throw new InvalidDataException($"{path}: {Explain(exception, json, dialect)}", exception);
        }
        catch (Exception exception) when (exception is ArgumentException or NotSupportedException)
        {
            throw new InvalidDataException($"{path}: {exception.Message}", exception);
        }
    }

    public static string Write(ModelConfig config)
    {
        var json = JsonSerializer.SerializeToNode(config, config.GetType(), s_options)!.AsObject();
        json[TypeField] = config.ModelType;
        json.TryAdd("architectures", new JsonArray(config.Architecture));
        ConfigDialect.Of(config.ModelType).Denormalize(json);

        var sorted = new JsonObject();
        foreach (var (field, value) in json.OrderBy(pair => pair.Key, StringComparer.Ordinal).ToArray())
        {
            json.Remove(field);
            sorted.Add(field, value);
        }
        return sorted.ToJsonString(s_options) + "\n";
    }

    /// <summary>Parses the text, also where it holds Python's Infinity, which is no JSON.</summary>
    private static JsonObject Parse(string text, string path)
    {
        try
        {
            var pure = StringOrSpecialNumber().Replace(text, match => match.Value[0] == '"'
                ? match.Value
                : SpecialNumber.Format(match.Value));
            var options = new JsonDocumentOptions { AllowDuplicateProperties = false };
            return JsonNode.Parse(pure, documentOptions: options) as JsonObject
                ?? throw new InvalidDataException($"{path}: must be a JSON object.");
        }
        catch (JsonException exception)
        {
            throw new InvalidDataException($"{path}: is not valid JSON: {exception.Message}", exception);
        }
    }

    private static string ReadType(JsonObject json, string path)
    {
        var known = string.Join(", ", ConfigDialect.Known);
        if (!json.Remove(TypeField, out var node) || node is null)
            throw new InvalidDataException($"{path}: the field {TypeField} is missing. Known are {known}.");
        if (node.GetValueKind() != JsonValueKind.String || !ConfigDialect.Known.Contains(node.GetValue<string>()))
            throw new InvalidDataException($"{path}: {TypeField} is {node.ToJsonString()}. Known are {known}.");
        return node.GetValue<string>();
    }

    private static string Explain(JsonException exception, JsonObject json, ConfigDialect dialect)
    {
        foreach (var field in new[] { "vocab_size", "hidden_size", "num_hidden_layers" })
            if (!json.ContainsKey(field))
                return $"the field {field} is missing.";
        if (exception.Path is not { Length: > 2 } position || !position.StartsWith("$.", StringComparison.Ordinal))
            return exception.Message;
        var name = position[2..].Split('.', '[')[0];
        var value = json[name]?.ToJsonString() ?? "null";
        return $"the field {dialect.NameInFile(name)} has the value {value}, which does not fit: {exception.Message}";
    }

    [GeneratedRegex("""
        "(?:[^"\\]|\\.)*"|-?\bInfinity\b|\bNaN\b
        """, RegexOptions.IgnorePatternWhitespace | RegexOptions.Singleline)]
    private static partial Regex StringOrSpecialNumber();
}
