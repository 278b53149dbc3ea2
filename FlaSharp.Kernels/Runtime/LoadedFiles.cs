using System.Diagnostics;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The libraries that are loaded in this process.</summary>
internal static class LoadedFiles
{
    /// <summary>The path of the first that has one of these beginnings of a name, the earlier beginnings first; or null.</summary>
    public static string? Find(params ReadOnlySpan<string> beginnings)
    {
        using var process = Process.GetCurrentProcess();
        var files = process.Modules.Cast<ProcessModule>().Select(module => module.FileName).ToList();
        foreach (var beginning in beginnings)
            if (files.Find(file => Path.GetFileName(file).StartsWith(beginning, StringComparison.Ordinal)) is { } found)
                return found;
        return null;
    }
}
