using System.Runtime.InteropServices;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>The C functions of TorchSharp's native library.</summary>
internal static class TorchExports
{
    private static readonly nint s_library = Load();

    /// <summary>The address of a function.</summary>
    /// <exception cref="EntryPointNotFoundException">This TorchSharp has none of that name.</exception>
    public static nint Find(string name) => NativeLibrary.GetExport(s_library, name);

    private static nint Load()
    {
        InitializeDeviceType(DeviceType.CPU); // loads what the library depends on
        return NativeLibrary.Load("LibTorchSharp", typeof(torch).Assembly, null);
    }
}
