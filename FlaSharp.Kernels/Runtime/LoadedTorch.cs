using System.Diagnostics;
using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The libtorch of this process, as its loaded files tell; nothing of TorchSharp is needed.</summary>
internal static unsafe class LoadedTorch
{
    private static readonly string[] s_names =
        ["libtorch_cuda.so", "torch_cuda.dll", "libtorch_cpu.so", "torch_cpu.dll", "libtorch_cpu.dylib"];

    /// <summary>The folder that libtorch lies in; null before it is loaded.</summary>
    public static string? Folder => Path.GetDirectoryName(File());

    /// <summary>Major and minor version; null before libtorch is loaded, and for one before 2.9.</summary>
    public static Version? Version
    {
        get
        {
            if (File() is not { } file)
                return null;
            var cpu = file.Replace("torch_cuda", "torch_cpu", StringComparison.Ordinal);
            if (!NativeLibrary.TryLoad(cpu, out var library)
                || !NativeLibrary.TryGetExport(library, "aoti_torch_abi_version", out var function))
            {
                return null;
            }
            var version = ((delegate* unmanaged<ulong>)function)();
            return new Version((int)(version >> 56), (int)(version >> 48 & 0xff));
        }
    }

    private static string? File()
    {
        using var process = Process.GetCurrentProcess();
        var files = process.Modules.Cast<ProcessModule>().Select(module => module.FileName).ToList();
        return s_names.Select(name => files.Find(file => Path.GetFileName(file) == name))
            .FirstOrDefault(file => file is not null);
    }
}
