using System.Text.Json;
using System.Text.Json.Serialization;

namespace FlaSharp.Models;

/// <summary>A list that JSON holds as an array, or as the one element itself.</summary>
internal sealed class OneOrManyConverter<T> : JsonConverter<IReadOnlyList<T>>
{
    public override IReadOnlyList<T>? Read(ref Utf8JsonReader reader, Type typeToConvert, JsonSerializerOptions options)
    {
        try
        {
            return reader.TokenType == JsonTokenType.StartArray
                ? JsonSerializer.Deserialize<T[]>(ref reader, options)
                : [JsonSerializer.Deserialize<T>(ref reader, options)!];
        }
        catch (JsonException exception)
        {
            // Its path starts at the list. Without one, the caller adds the whole.
            throw new JsonException(exception.Message, exception);
        }
    }

    public override void Write(Utf8JsonWriter writer, IReadOnlyList<T> value, JsonSerializerOptions options)
    {
        if (value.Count == 1)
            JsonSerializer.Serialize(writer, value[0], options);
        else
            JsonSerializer.Serialize(writer, value.ToArray(), options);
    }
}
