using System.Buffers.Binary;
using System.Security.Cryptography;
using System.Text;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The SHA-256 of everything that a compilation depends on: what a cached cubin is found by.</summary>
internal static class KernelKey
{
    /// <param name="source">The source and its headers.</param>
    /// <param name="entry">The function wanted.</param>
    /// <param name="options">The compiler's options, constants and target among them.</param>
    /// <param name="compilerVersion">NVRTC's.</param>
    public static byte[] Of(KernelSource source, string entry, IReadOnlyList<string> options, Version compilerVersion)
    {
        using var hash = IncrementalHash.CreateHash(HashAlgorithmName.SHA256);
        Add(hash, source.Name, source.Text, entry, compilerVersion.ToString());
        foreach (var (name, text) in source.Headers)
            Add(hash, "header", name, text);
        foreach (var option in options)
            Add(hash, "option", option);
        return hash.GetHashAndReset();
    }

    private static void Add(IncrementalHash hash, params ReadOnlySpan<string> parts)
    {
        Span<byte> length = stackalloc byte[sizeof(int)];
        foreach (var part in parts)
        {
            var bytes = Encoding.UTF8.GetBytes(part);
            BinaryPrimitives.WriteInt32LittleEndian(length, bytes.Length); // so that "ab" + "c" is not "a" + "bc"
            hash.AppendData(length);
            hash.AppendData(bytes);
        }
    }
}
