using System.Text.Json;
using System.Text.Unicode;
using static TorchSharp.torch;

namespace FlaSharp.IO;

/// <summary>Reads the JSON of a header and checks every rule of the format before anyone allocates for it.</summary>
internal ref struct SafeTensorsHeaderParser
{
    private const int DepthLimit = 8;      // a header needs three
    private const int DimensionLimit = 64; // as in libtorch's iterators

    private readonly ReadOnlySpan<byte> _json;
    private readonly string _path;
    private Utf8JsonReader _reader;

    public SafeTensorsHeaderParser(ReadOnlySpan<byte> json, string path)
    {
        _json = json;
        _path = path;
        _reader = new Utf8JsonReader(json, new JsonReaderOptions { MaxDepth = DepthLimit });
    }

    /// <param name="dataLength">The bytes of the file after the header.</param>
    public SafeTensorsHeader Parse(long dataLength)
    {
        if (!_json.StartsWith("{"u8))
            throw Invalid("its header does not start with '{'.");
        if (!Utf8.IsValid(_json))
            throw Invalid("its header is not UTF-8.");
        try
        {
            var header = ReadHeader(dataLength);
            CheckLayout(header.Tensors, dataLength);
            return header;
        }
        catch (JsonException exception)
        {
            throw Invalid($"its header is not valid JSON: {exception.Message}", exception);
        }
    }

    private SafeTensorsHeader ReadHeader(long dataLength)
    {
        var tensors = new List<SafeTensorsEntry>();
        var names = new HashSet<string>();
        Dictionary<string, string>? metadata = null;

        _reader.Read();
        while (NextProperty("the header") is { } name)
        {
            if (!names.Add(name))
                throw Invalid($"'{name}' is there twice.");
            if (name == SafeTensorsHeader.MetadataKey)
                metadata = ReadMetadata();
            else
                tensors.Add(ReadTensor(name, dataLength));
        }
        _reader.Read(); // throws if anything but white space follows

        tensors.Sort((x, y) => (x.Begin, x.End).CompareTo((y.Begin, y.End)));
        return new SafeTensorsHeader(tensors, metadata ?? []);
    }

    private Dictionary<string, string> ReadMetadata()
    {
        var metadata = new Dictionary<string, string>();
        Expect(JsonTokenType.StartObject, SafeTensorsHeader.MetadataKey, "an object");
        while (NextProperty(SafeTensorsHeader.MetadataKey) is { } key)
        {
            Expect(JsonTokenType.String, $"{SafeTensorsHeader.MetadataKey}.{key}", "a string");
            if (!metadata.TryAdd(key, Text()))
                throw Invalid($"the metadata has '{key}' twice.");
        }
        return metadata;
    }

    private SafeTensorsEntry ReadTensor(string name, long dataLength)
    {
        ScalarType? dtype = null;
        long[]? shape = null, offsets = null;
        Expect(JsonTokenType.StartObject, name, "an object");
        while (NextProperty(name) is { } property)
        {
            if (property == "dtype" && dtype is null)
                dtype = ReadDType(name);
            else if (property == "shape" && shape is null)
                shape = ReadNumbers($"{name}.shape", DimensionLimit);
            else if (property == "data_offsets" && offsets is null)
                offsets = ReadNumbers($"{name}.data_offsets", 2);
            else if (property is "dtype" or "shape" or "data_offsets")
                throw Invalid($"'{name}' has {property} twice.");
            else
                _reader.Skip(); // a later version of the format may say more
        }

        if (dtype is not { } type || shape is null || offsets is null)
            throw Invalid($"'{name}' lacks dtype, shape or data_offsets.");
        if (offsets is not [var begin, var end] || begin > end || end > dataLength)
            throw Invalid(
                $"the data_offsets [{string.Join(", ", offsets)}] of '{name}' are not a range within the {dataLength} bytes of data.");
        if (!SafeTensorsEntry.TryCountBytes(type, shape, out var bytes))
            throw Invalid($"the shape [{string.Join(", ", shape)}] of '{name}' is too large.");
        if (bytes != end - begin)
            throw Invalid(
                $"'{name}' of shape [{string.Join(", ", shape)}] and dtype {SafeTensorsDType.NameOf(type)} takes {bytes} bytes, " +
                $"but its data_offsets [{begin}, {end}] give it {end - begin}.");
        return new SafeTensorsEntry(name, type, shape, begin, end);
    }

    private ScalarType ReadDType(string name)
    {
        Expect(JsonTokenType.String, $"{name}.dtype", "a string");
        var text = Text();
        return SafeTensorsDType.TryParse(text, out var dtype)
            ? dtype
            : throw Invalid($"'{name}' has dtype {text}; supported are {SafeTensorsDType.Supported}.");
    }

    private long[] ReadNumbers(string what, int limit)
    {
        var numbers = new List<long>();
        Expect(JsonTokenType.StartArray, what, "an array");
        while (_reader.Read() && _reader.TokenType != JsonTokenType.EndArray)
        {
            if (_reader.TokenType != JsonTokenType.Number || !_reader.TryGetInt64(out var number) || number < 0)
                throw Invalid($"{what} must hold whole numbers from 0 to {long.MaxValue}.");
            if (numbers.Count == limit)
                throw Invalid($"{what} has more than {limit} numbers.");
            numbers.Add(number);
        }
        return [.. numbers];
    }

    /// <summary>The tensors must cover the data exactly: no overlap, no hole, nothing left at the end.</summary>
    private readonly void CheckLayout(IReadOnlyList<SafeTensorsEntry> tensors, long dataLength)
    {
        var position = 0L;
        foreach (var tensor in tensors)
        {
            if (tensor.Begin != position)
                throw Invalid($"'{tensor.Name}' starts at byte {tensor.Begin} of the data, and the tensor before it ends at {position}.");
            position = tensor.End;
        }
        if (position != dataLength)
            throw Invalid($"its tensors take {position} bytes, but {dataLength} follow the header.");
    }

    /// <summary>The name of the next property of the current object; null at its end.</summary>
    private string? NextProperty(string what)
    {
        _reader.Read();
        return _reader.TokenType switch
        {
            JsonTokenType.PropertyName => Text(),
            JsonTokenType.EndObject => null,
            _ => throw Invalid($"{what} is cut off."),
        };
    }

    private void Expect(JsonTokenType type, string what, string description)
    {
        _reader.Read();
        if (_reader.TokenType != type)
            throw Invalid($"{what} must be {description}.");
    }

    private readonly string Text()
    {
        try
        {
            return _reader.GetString()!;
        }
        catch (InvalidOperationException exception) // half of a surrogate pair, escaped
        {
            throw Invalid("its header has a string that is not Unicode.", exception);
        }
    }

    private readonly SafeTensorsException Invalid(string problem, Exception? cause = null) => new(_path, problem, cause);
}
