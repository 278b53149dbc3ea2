namespace FlaSharp.Kernels.Runtime;

/// <summary>Where NVRTC may lie. Nothing is loaded here.</summary>
/// <param name="environment">Gives an environment variable, or null.</param>
/// <param name="torchFolder">The folder of the loaded libtorch, or null.</param>
/// <param name="applicationFolders">Those of its native libraries; the one of libtorch may be a link's target.</param>
internal sealed class NvrtcSearch(Func<string, string?> environment, string? torchFolder, IEnumerable<string> applicationFolders)
{
    public const string Override = "FLASHARP_NVRTC";

    // Newer first. Names of CUDA 13 and of CUDA 12.
    private static readonly string[] s_names = OperatingSystem.IsWindows()
        ? ["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"]
        : ["libnvrtc.so.13", "libnvrtc.so.12"];

    public static NvrtcSearch OfThisProcess()
    {
        var folders = AppContext.GetData("NATIVE_DLL_SEARCH_DIRECTORIES") as string ?? AppContext.BaseDirectory;
        return new NvrtcSearch(Environment.GetEnvironmentVariable, LoadedTorch.Folder,
            folders.Split(Path.PathSeparator, StringSplitOptions.RemoveEmptyEntries));
    }

    /// <summary>Every place looked at, for the message where there is nothing.</summary>
    public List<string> Places { get; } = [];

    /// <summary>Files, and at the end names that the system's loader may know, the best first.</summary>
    public IEnumerable<string> Candidates()
    {
        if (environment(Override) is { Length: > 0 } chosen)
        {
            // What the user names is used or nothing is.
            return File.Exists(chosen) ? [Path.GetFullPath(chosen)] : In(chosen, Override).ToList();
        }
        return Folders().SelectMany(folder => In(folder.path, folder.origin)).Concat(s_names.Select(Loader));
    }

    /// <summary>The built-in functions beside an NVRTC, which looks for them by name only: they are loaded before.</summary>
    public static IEnumerable<string> Builtins(string nvrtc) => Path.GetDirectoryName(nvrtc) is { Length: > 0 } folder
        ? Files(folder, OperatingSystem.IsWindows() ? "nvrtc-builtins64_*.dll" : "libnvrtc-builtins*.so*")
        : [];

    private IEnumerable<(string path, string origin)> Folders()
    {
        if (torchFolder is not null)
        {
            yield return (torchFolder, "beside libtorch");
            // torch/lib of a Python install: its CUDA libraries are packages beside torch, nvidia/cuda_nvrtc and nvidia/cu13.
            var packages = Path.Combine(torchFolder, "..", "..", "nvidia");
            foreach (var package in SubFolders(packages, "*"))
                yield return (Path.Combine(package, OperatingSystem.IsWindows() ? "bin" : "lib"), "Python packages");
        }
        foreach (var folder in applicationFolders)
            yield return (folder, "application");
        foreach (var variable in (string[])["CUDA_HOME", "CUDA_PATH"])
            if (environment(variable) is { Length: > 0 } toolkit)
                yield return (Toolkit(toolkit), variable);
        if (!OperatingSystem.IsWindows())
            foreach (var toolkit in SubFolders("/usr/local", "cuda*"))
                yield return (Toolkit(toolkit), "CUDA toolkit");
    }

    private static string Toolkit(string root) => Path.Combine(root, OperatingSystem.IsWindows() ? "bin" : "lib64");

    private string Loader(string name)
    {
        Places.Add($"{name} (system loader)");
        return name;
    }

    private IEnumerable<string> In(string folder, string origin)
    {
        folder = Path.GetFullPath(folder);
        Places.Add($"{folder} ({origin})");
        return Files(folder, OperatingSystem.IsWindows() ? "nvrtc64_*.dll" : "libnvrtc*.so*")
            .Where(file => !Path.GetFileName(file).Contains("builtins", StringComparison.Ordinal));
    }

    /// <summary>The newest first; "alt" is the same compiler with another runtime in it.</summary>
    private static IEnumerable<string> Files(string folder, string pattern) =>
        Entries(() => Directory.GetFiles(folder, pattern))
            .Where(file => !Path.GetFileName(file).Contains(".alt.", StringComparison.Ordinal));

    private static IEnumerable<string> SubFolders(string folder, string pattern) =>
        Entries(() => Directory.GetDirectories(folder, pattern));

    /// <summary>In descending order; none where the folder cannot be read.</summary>
    private static IEnumerable<string> Entries(Func<string[]> list)
    {
        try
        {
            return list().OrderDescending(StringComparer.Ordinal);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            return [];
        }
    }
}
