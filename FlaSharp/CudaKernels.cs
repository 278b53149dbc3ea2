using FlaSharp.Kernels.Runtime;

namespace FlaSharp;

/// <summary>What happens where an operation's CUDA kernel cannot run. <see cref="Doctor"/> says whether, and why.</summary>
public static class CudaKernels
{
    /// <summary>
    /// Whether an operation on a GPU throws <see cref="NotSupportedException"/> where its kernel cannot run, instead of going on
    /// with TorchSharp's operations. True from the start if FLASHARP_STRICT=1.
    /// </summary>
    public static bool Strict
    {
        get => CudaRuntime.Strict;
        set => CudaRuntime.Strict = value;
    }

    /// <summary>Gets each message about it once, on the thread that met it; standard error if not set.</summary>
    /// <exception cref="ArgumentNullException">The value is null.</exception>
    public static Action<string> Message
    {
        get => CudaRuntime.Message;
        set
        {
            ArgumentNullException.ThrowIfNull(value);
            CudaRuntime.Message = value;
        }
    }
}
