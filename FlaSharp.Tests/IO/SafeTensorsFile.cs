using System.Buffers.Binary;
using System.Text;
using FlaSharp.IO;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.IO;

/// <summary>Builds files byte by byte, right or wrong ones, and reads them from memory.</summary>
internal static class SafeTensorsFile
{
    public static byte[] Make(string header, int dataLength = 0) => Make(Encoding.UTF8.GetBytes(header), new byte[dataLength]);

    public static byte[] Make(ReadOnlySpan<byte> header, ReadOnlySpan<byte> data, ulong? headerLength = null)
    {
        var file = new byte[8 + header.Length + data.Length];
        BinaryPrimitives.WriteUInt64LittleEndian(file, headerLength ?? (ulong)header.Length);
        header.CopyTo(file.AsSpan(8));
        data.CopyTo(file.AsSpan(8 + header.Length));
        return file;
    }

    public static Dictionary<string, Tensor> Read(byte[] file)
    {
        using var stream = new MemoryStream(file, writable: false);
        return SafeTensors.Read(stream, "memory");
    }

    public static string HeaderOf(byte[] file) =>
        Encoding.UTF8.GetString(file, 8, (int)BinaryPrimitives.ReadUInt64LittleEndian(file));

    /// <summary>Whether two tensors agree in dtype, shape and every bit.</summary>
    public static bool Same(Tensor x, Tensor y) =>
        x.dtype == y.dtype && x.shape.SequenceEqual(y.shape) && Bytes(x).SequenceEqual(Bytes(y));

    private static byte[] Bytes(Tensor tensor)
    {
        using var dense = tensor.detach().cpu().contiguous();
        return dense.bytes.ToArray();
    }
}
