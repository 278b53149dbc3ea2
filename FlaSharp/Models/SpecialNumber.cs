using System.Text.Json;

namespace FlaSharp.Models;

/// <summary>Infinity in JSON, which has none: an object as transformers writes it, <c>{"__float__": "Infinity"}</c>.</summary>
internal static class SpecialNumber
{
    private const string Field = "__float__";

    public static string Format(string name) => $$"""{"{{Field}}": "{{name}}"}""";

    public static double Read(ref Utf8JsonReader reader)
    {
        if (reader.TokenType == JsonTokenType.Number)
            return reader.GetDouble();
        using var json = JsonDocument.ParseValue(ref reader);
        return json.RootElement.ValueKind == JsonValueKind.Object && json.RootElement.TryGetProperty(Field, out var name)
            ? name.ToString() switch
            {
                "Infinity" => double.PositiveInfinity,
                "-Infinity" => double.NegativeInfinity,
                _ => throw new JsonException($"{json.RootElement} is no number."),
            }
            : throw new JsonException($"{json.RootElement} is no number.");
    }

    public static void Write(Utf8JsonWriter writer, double value)
    {
        if (double.IsFinite(value))
            writer.WriteNumberValue(value);
        else
            writer.WriteRawValue(Format(value > 0 ? "Infinity" : "-Infinity"));
    }
}
