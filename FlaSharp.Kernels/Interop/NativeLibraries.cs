using System.Reflection;
using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Interop;

/// <summary>The files that the imports of this assembly come from: in places that the loader does not know.</summary>
internal static class NativeLibraries
{
    public const string Driver = "CUDA driver";
    public const string Nvrtc = "NVRTC";

    private static readonly Lazy<nint> s_driver = new(LoadDriver);

    static NativeLibraries() => NativeLibrary.SetDllImportResolver(typeof(NativeLibraries).Assembly, Resolve);

    /// <summary>Of NVRTC, set by who found it before the first call of it.</summary>
    public static Lazy<nint>? NvrtcHandle { get; set; }

    /// <summary>Makes the imports use these files; any number of calls.</summary>
    public static void Register()
    {
        // The static constructor has done it.
    }

    private static nint Resolve(string library, Assembly assembly, DllImportSearchPath? path) => library switch
    {
        Driver => s_driver.Value,
        Nvrtc => NvrtcHandle?.Value ?? 0,
        _ => 0,
    };

    private static nint LoadDriver()
    {
        string[] names = OperatingSystem.IsWindows()
            ? ["nvcuda.dll"]
            : ["libcuda.so.1", "libcuda.so", "/usr/lib/wsl/lib/libcuda.so.1"];
        foreach (var name in names)
            if (NativeLibrary.TryLoad(name, out var handle))
                return handle;
        throw new DllNotFoundException($"There is no CUDA driver: the system's loader finds none of {string.Join(", ", names)}.");
    }
}
