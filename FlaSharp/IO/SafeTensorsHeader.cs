using System.Buffers;
using System.Buffers.Binary;
using System.Text;
using System.Text.Encodings.Web;
using System.Text.Json;

namespace FlaSharp.IO;

/// <summary>
/// The start of a safetensors file: eight bytes with the length of a JSON object, little-endian, and the object itself, which
/// names each tensor's dtype, shape and place. See https://github.com/huggingface/safetensors for the format.
/// </summary>
/// <param name="Tensors">In the order of their data, which they cover without a gap.</param>
/// <param name="Metadata">What stands under <c>__metadata__</c>.</param>
internal sealed record SafeTensorsHeader(IReadOnlyList<SafeTensorsEntry> Tensors, Dictionary<string, string> Metadata)
{
    public const string MetadataKey = "__metadata__";

    private const int LengthSize = 8;
    private const int LengthLimit = 100_000_000; // as in the reference reader

    /// <summary>Refuses half surrogate pairs, which would come out as other characters.</summary>
    private static readonly UTF8Encoding s_utf8 = new(false, throwOnInvalidBytes: true);

    /// <summary>Reads and checks the header, and leaves the stream at the first byte of data.</summary>
    /// <exception cref="SafeTensorsException">The header breaks a rule of the format, or does not fit the length of the file.</exception>
    public static SafeTensorsHeader Read(Stream stream, string path)
    {
        if (!stream.CanSeek)
            throw new SafeTensorsException(path, "it is not a regular file.");
        var fileLength = stream.Length - stream.Position;
        if (fileLength < LengthSize)
            throw new SafeTensorsException(path, $"it has {fileLength} bytes, and the length of the header alone takes {LengthSize}.");

        Span<byte> lengthBytes = stackalloc byte[LengthSize];
        stream.ReadExactly(lengthBytes);
        var length = BinaryPrimitives.ReadUInt64LittleEndian(lengthBytes);
        if (length > LengthLimit)
            throw new SafeTensorsException(path, $"its header would be {length} bytes long, and the limit is {LengthLimit}.");
        if (length > (ulong)(fileLength - LengthSize))
            throw new SafeTensorsException(path, $"its header would be {length} bytes long, but the file has {fileLength} bytes.");

        var json = new byte[length];
        stream.ReadExactly(json);
        return new SafeTensorsHeaderParser(json, path).Parse(fileLength - LengthSize - json.Length);
    }

    /// <summary>The bytes that precede the data: padded with spaces, so that the data starts at a multiple of eight.</summary>
    public static byte[] Format(IReadOnlyList<SafeTensorsEntry> tensors, IReadOnlyDictionary<string, string> metadata)
    {
        var buffer = new ArrayBufferWriter<byte>();
        buffer.GetSpan(LengthSize)[..LengthSize].Clear();
        buffer.Advance(LengthSize);
        using (var json = new Utf8JsonWriter(buffer, new() { Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping }))
        {
            json.WriteStartObject();
            if (metadata.Count > 0)
            {
                json.WriteStartObject(MetadataKey);
                foreach (var (key, value) in metadata.OrderBy(pair => pair.Key, StringComparer.Ordinal))
                    json.WriteString(s_utf8.GetBytes(key), s_utf8.GetBytes(value));
                json.WriteEndObject();
            }
            foreach (var tensor in tensors)
                Format(json, tensor);
            json.WriteEndObject();
        }

        var length = (buffer.WrittenCount + LengthSize - 1) / LengthSize * LengthSize;
        if (length - LengthSize > LengthLimit)
            throw new ArgumentException($"The names and metadata take {length} bytes, and a header has at most {LengthLimit}.");
        var bytes = new byte[length];
        bytes.AsSpan().Fill((byte)' ');
        buffer.WrittenSpan.CopyTo(bytes);
        BinaryPrimitives.WriteUInt64LittleEndian(bytes, (ulong)(length - LengthSize));
        return bytes;
    }

    private static void Format(Utf8JsonWriter json, SafeTensorsEntry tensor)
    {
        json.WriteStartObject(s_utf8.GetBytes(tensor.Name));
        json.WriteString("dtype", SafeTensorsDType.NameOf(tensor.DType));
        json.WriteStartArray("shape");
        foreach (var size in tensor.Shape)
            json.WriteNumberValue(size);
        json.WriteEndArray();
        json.WriteStartArray("data_offsets");
        json.WriteNumberValue(tensor.Begin);
        json.WriteNumberValue(tensor.End);
        json.WriteEndArray();
        json.WriteEndObject();
    }
}
