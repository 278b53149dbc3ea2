using System.Runtime.InteropServices;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// The NVRTC of this process, found once: first beside the loaded libtorch, since that one suits the driver. So libtorch is
/// loaded before.
/// </summary>
internal sealed class NvrtcLibrary
{
    private static readonly Lazy<(NvrtcLibrary? library, string problem)> s_found = new(Find);

    private NvrtcLibrary(string path, Version version, IReadOnlyList<int> architectures) =>
        (Path, Version, Architectures) = (path, version, architectures);

    /// <summary>The file, or the name that the system's loader knows.</summary>
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

    private static (NvrtcLibrary?, string) Find()
    {
        var search = new NvrtcSearch(Environment.GetEnvironmentVariable, LoadedTorch.Folder);
        var failures = new List<string>();
        foreach (var candidate in search.Candidates())
        {
            foreach (var builtins in NvrtcSearch.Builtins(candidate))
                NativeLibrary.TryLoad(builtins, out _);
            if (!NativeLibrary.TryLoad(candidate, out var handle))
            {
                if (System.IO.Path.IsPathRooted(candidate))
                    failures.Add($"{candidate} cannot be loaded");
                continue;
            }
            NativeLibraries.NvrtcHandle = handle;
            NvrtcException.ThrowIfFailed(Nvrtc.nvrtcVersion(out var major, out var minor));
            return (new NvrtcLibrary(candidate, new Version(major, minor), SupportedArchitectures()), "");
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
