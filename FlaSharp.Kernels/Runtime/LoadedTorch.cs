using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The libtorch of this process, as its loaded files tell; nothing of TorchSharp is needed.</summary>
internal static unsafe class LoadedTorch
{
    private static readonly string[] s_cpu = ["libtorch_cpu.so", "torch_cpu.dll", "libtorch_cpu.dylib"];

    /// <summary>The folder that libtorch lies in; null before it is loaded.</summary>
    public static string? Folder => Path.GetDirectoryName(LoadedFiles.Find(["libtorch_cuda.so", "torch_cuda.dll", .. s_cpu]));

    /// <summary>Major and minor version; null before libtorch is loaded, and for one before 2.9.</summary>
    public static Version? Version
    {
        get
        {
            if (LoadedFiles.Find(s_cpu) is not { } file || !NativeLibrary.TryLoad(file, out var library)
                || !NativeLibrary.TryGetExport(library, "aoti_torch_abi_version", out var function))
            {
                return null;
            }
            var version = ((delegate* unmanaged<ulong>)function)();
            return new Version((int)(version >> 56), (int)(version >> 48 & 0xff));
        }
    }
}
