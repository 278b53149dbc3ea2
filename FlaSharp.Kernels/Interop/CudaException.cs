using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;

namespace FlaSharp.Kernels.Interop;

/// <summary>A call of the CUDA driver failed. The message has the driver's own words and what was being done.</summary>
public sealed class CudaException : Exception
{
    private CudaException(CudaResult result, string message) : base(message) => Code = (int)result;

    /// <summary>The CUresult.</summary>
    public int Code { get; }

    /// <param name="result">What the driver returned.</param>
    /// <param name="call">What was being done; the calling expression if absent.</param>
    internal static void ThrowIfFailed(CudaResult result, [CallerArgumentExpression(nameof(result))] string call = "")
    {
        if (result != CudaResult.Success)
            throw Of(result, call);
    }

    internal static CudaException Of(CudaResult result, string action) =>
        new(result, $"{Describe(result)} in {action}");

    /// <summary>The driver's name of a result and its explanation.</summary>
    internal static unsafe string Describe(CudaResult result)
    {
        // An unknown code leaves null.
        _ = CudaDriver.cuGetErrorName(result, out var name);
        _ = CudaDriver.cuGetErrorString(result, out var text);
        return name is null
            ? $"CUDA error {(int)result}"
            : $"{Marshal.PtrToStringUTF8((nint)name)} ({(int)result}: {Marshal.PtrToStringUTF8((nint)text)})";
    }
}
