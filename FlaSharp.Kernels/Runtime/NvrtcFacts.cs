using System.Globalization;
using System.Security.Cryptography;
using System.Text;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// What an NVRTC says of itself, kept beside the kernels: where all that a process needs are cached, loading the compiler only to ask
/// would take almost half of its first call.
/// </summary>
/// <param name="Version">Its version.</param>
/// <param name="Architectures">The GPUs it compiles for, as 80 for sm_80.</param>
internal sealed record NvrtcFacts(Version Version, IReadOnlyList<int> Architectures)
{
    private const long MaxBytes = 1 << 20; // far more than one computer has of them

    /// <summary>In the folder of the user's kernels.</summary>
    public static CubinCache Cache { get; } = new(CubinCache.Default.Folder, MaxBytes, ".nvrtc");

    /// <summary>Those of a file, if it was asked before and has not changed since; or null.</summary>
    public static NvrtcFacts? Find(CubinCache cache, string path)
    {
        if (KeyOf(path) is not { } key || cache.Find(key) is not { } known)
            return null;
        var numbers = known.Log.Split(' ');
        return new NvrtcFacts(Version.Parse(numbers[0]),
            [.. numbers.Skip(1).Select(number => int.Parse(number, CultureInfo.InvariantCulture))]);
    }

    /// <summary>Keeps them, as far as the folder allows: as the log of a kernel without an image.</summary>
    public void Keep(CubinCache cache, string path)
    {
        if (KeyOf(path) is { } key)
            cache.Add(key, new CompiledKernel([], $"{Version} {string.Join(' ', Architectures)}"));
    }

    /// <summary>Null where there is no file, as at the end of a broken link.</summary>
    private static byte[]? KeyOf(string path)
    {
        try
        {
            var file = new FileInfo(File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path);
            return SHA256.HashData(Encoding.UTF8.GetBytes($"{file.FullName} {file.Length} {file.LastWriteTimeUtc.Ticks}"));
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException)
        {
            return null;
        }
    }
}
