using System.Text.Json;
using System.Text.Json.Serialization;

namespace FlaSharp.Models;

/// <summary>A range: in JSON an array of two numbers, which may be infinite.</summary>
internal sealed class RangeConverter : JsonConverter<(double, double)?>
{
    public override (double, double)? Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        if (reader.TokenType == JsonTokenType.Null)
            return null;
        var values = new List<double>();
        if (reader.TokenType != JsonTokenType.StartArray)
            throw new JsonException("A range must be an array of two numbers.");
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
            values.Add(SpecialNumber.Read(ref reader));
        return values.Count == 2
            ? (values[0], values[1])
            : throw new JsonException($"A range must be an array of two numbers, but has {values.Count}.");
    }

    public override void Write(Utf8JsonWriter writer, (double, double)? value, JsonSerializerOptions options)
    {
        if (value is not var (min, max))
        {
            writer.WriteNullValue();
            return;
        }
        writer.WriteStartArray();
        SpecialNumber.Write(writer, min);
        SpecialNumber.Write(writer, max);
        writer.WriteEndArray();
    }
}
