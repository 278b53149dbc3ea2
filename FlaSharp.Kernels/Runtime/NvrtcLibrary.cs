using System.Runtime.InteropServices;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// The NVRTC of this process, found once: first beside the loaded libtorch, since that one suits the driver. So libtorch is
/// loaded before.
/// </summary>
internal sealed class NvrtcLibrary
{
    private static readonly Lazy<(NvrtcLibrary? library, string problem)> s_found = new(() => Find(NvrtcSearch.OfThisProcess()));

    private NvrtcLibrary(string path, Version version, IReadOnlyList<int> architectures) =>
        (Path, Version, Architectures) = (path, version, architectures);

    /// <summary>The file.</summary>
    public string Path { get; }

    public Version Version { get; }

    /// <summary>The GPUs it compiles for, as 80 for sm_80.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <exception cref="DllNotFoundException">There is none; the message lists the places.</exception>
    public static NvrtcLibrary Load() => s_found.Value.library ?? throw new DllNotFoundException(s_found.Value.problem);

    /// <summary>The library, or null and the reason.</summary>
    public static NvrtcLibrary? TryLoad(out string problem)
    {
        (var library, problem) = s_found.Value;
        return library;
    }

    /// <summary>The message where nothing was found.</summary>
    public static string NotFound(IEnumerable<string> places, IEnumerable<string> failures) => $"""
        There is no NVRTC, which compiles the CUDA kernels. Looked for it in:
        {string.Join('\n', places.Select(place => "  " + place))}
        {string.Concat(failures.Select(failure => $"  {failure}\n"))}Name its file or folder in {NvrtcSearch.Override}.
        """;

    /// <summary>Loads the first candidate that is an NVRTC; null and the reason if none is.</summary>
    public static (NvrtcLibrary?, string) Find(NvrtcSearch search)
    {
        var failures = new List<string>();
        foreach (var candidate in search.Candidates())
        {
            if (!NativeLibrary.TryLoad(candidate, out var handle))
            {
                if (System.IO.Path.IsPathRooted(candidate))
                    failures.Add($"{candidate} cannot be loaded");
                continue;
            }
            if (!NativeLibrary.TryGetExport(handle, nameof(Nvrtc.nvrtcGetCUBIN), out _))
            {
                failures.Add($"{candidate} is no NVRTC");
                continue;
            }
            // Of what the system's loader found, only the process knows the folder.
            var path = System.IO.Path.IsPathRooted(candidate) ? candidate : LoadedFiles.Find(candidate) ?? candidate;
            foreach (var builtins in NvrtcSearch.Builtins(path))
                NativeLibrary.TryLoad(builtins, out _);
            NativeLibraries.NvrtcHandle = handle;
            NvrtcException.ThrowIfFailed(Nvrtc.nvrtcVersion(out var major, out var minor));
            return (new NvrtcLibrary(path, new Version(major, minor), SupportedArchitectures()), "");
        }
        return (null, NotFound(search.Places, failures));
    }

    private static unsafe int[] SupportedArchitectures()
    {
        NvrtcException.ThrowIfFailed(Nvrtc.nvrtcGetNumSupportedArchs(out var count));
        var architectures = new int[count];
        fixed (int* first = architectures)
            NvrtcException.ThrowIfFailed(Nvrtc.nvrtcGetSupportedArchs(first));
        return architectures;
    }
}
