using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Interop;

/// <summary>A kernel could not be compiled. The message has the file, the options and the compiler's whole log.</summary>
public sealed class NvrtcException : Exception
{
    private NvrtcException(string message, string log) : base(message) => Log = log;

    /// <summary>What the compiler printed; empty if it was not reached.</summary>
    public string Log { get; }

    internal static unsafe NvrtcException Of(int result, string file, IEnumerable<string> options, string log) =>
        new($"""
            {Marshal.PtrToStringUTF8((nint)Nvrtc.nvrtcGetErrorString(result))}: {file} does not compile.
            Options: {string.Join(' ', options)}
            {log}
            """, log);

    internal static unsafe void ThrowIfFailed(int result, [CallerArgumentExpression(nameof(result))] string call = "")
    {
        if (result != 0)
            throw new NvrtcException($"{Marshal.PtrToStringUTF8((nint)Nvrtc.nvrtcGetErrorString(result))} in {call}", "");
    }
}
