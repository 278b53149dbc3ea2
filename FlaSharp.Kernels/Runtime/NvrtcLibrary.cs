using System.Runtime.InteropServices;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// The NVRTC of this process, found once: first beside the loaded libtorch, since that one suits the driver. So libtorch is
/// loaded before.
/// </summary>
internal sealed class NvrtcLibrary
{
    private static readonly Lazy<(NvrtcLibrary? library, string problem)> s_found = new(() =>
    {
        var found = Find(NvrtcSearch.OfThisProcess(), NvrtcFacts.Cache);
        NativeLibraries.NvrtcHandle = found.Item1?.Handle;
        return found;
    });

    private NvrtcLibrary(string path, NvrtcFacts facts, Lazy<nint> handle) =>
        (Path, Version, Architectures, Handle) = (path, facts.Version, facts.Architectures, handle);

    /// <summary>The file.</summary>
    public string Path { get; }

    public Version Version { get; }

    /// <summary>The GPUs it compiles for, as 80 for sm_80.</summary>
    public IReadOnlyList<int> Architectures { get; }

    /// <summary>Of the loaded library, which is loaded when it is first asked for, if it was known before.</summary>
    public Lazy<nint> Handle { get; }

    /// <summary>Version and file of a library that can be loaded, or why it cannot.</summary>
    public string Describe()
    {
        try
        {
            _ = Handle.Value;
            return $"{Version}, {Path}";
        }
        catch (DllNotFoundException e)
        {
            return e.Message;
        }
    }

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

    /// <summary>The first candidate that is an NVRTC; null and the reason if none is.</summary>
    /// <param name="search">Gives the candidates.</param>
    /// <param name="known">Those that need not be loaded to know them.</param>
    public static (NvrtcLibrary?, string) Find(NvrtcSearch search, CubinCache known)
    {
        var failures = new List<string>();
        foreach (var candidate in search.Candidates())
        {
            var isFile = System.IO.Path.IsPathRooted(candidate);
            if (isFile && NvrtcFacts.Find(known, candidate) is { } before)
                return (new NvrtcLibrary(candidate, before, new Lazy<nint>(() => Open(candidate))), "");
            if (!NativeLibrary.TryLoad(candidate, out var handle))
            {
                if (isFile)
                    failures.Add($"{candidate} cannot be loaded");
                continue;
            }
            if (!NativeLibrary.TryGetExport(handle, nameof(Nvrtc.nvrtcGetCUBIN), out _))
            {
                failures.Add($"{candidate} is no NVRTC");
                continue;
            }
            // Of what the system's loader found, only the process knows the folder.
            var path = isFile ? candidate : LoadedFiles.Find(candidate) ?? candidate;
            LoadBuiltins(path);
            var facts = Ask(handle);
            if (isFile)
                facts.Keep(known, path);
            return (new NvrtcLibrary(path, facts, new Lazy<nint>(handle)), "");
        }
        return (null, NotFound(search.Places, failures));
    }

    private static nint Open(string path)
    {
        if (!NativeLibrary.TryLoad(path, out var handle))
            throw new DllNotFoundException(
                $"{path} was an NVRTC before, and cannot be loaded now: name another one in {NvrtcSearch.Override}.");
        LoadBuiltins(path);
        return handle;
    }

    private static void LoadBuiltins(string path)
    {
        foreach (var builtins in NvrtcSearch.Builtins(path))
            NativeLibrary.TryLoad(builtins, out _);
    }

    private static unsafe NvrtcFacts Ask(nint library)
    {
        var version = (delegate* unmanaged<int*, int*, int>)NativeLibrary.GetExport(library, "nvrtcVersion");
        var count = (delegate* unmanaged<int*, int>)NativeLibrary.GetExport(library, "nvrtcGetNumSupportedArchs");
        var list = (delegate* unmanaged<int*, int>)NativeLibrary.GetExport(library, "nvrtcGetSupportedArchs");
        int major, minor, length;
        NvrtcException.ThrowIfFailed(version(&major, &minor));
        NvrtcException.ThrowIfFailed(count(&length));
        var architectures = new int[length];
        fixed (int* first = architectures)
            NvrtcException.ThrowIfFailed(list(first));
        return new NvrtcFacts(new Version(major, minor), architectures);
    }
}
