using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>Whether an operation runs on its CUDA kernel or on TorchSharp's operations, where it has one kernel.</summary>
internal static class CudaOperation
{
    /// <summary>Whether the kernel runs on the tensor's device. Where it should and cannot, says so once.</summary>
    /// <param name="operation">For the message.</param>
    /// <param name="tensor">Of any device.</param>
    /// <param name="unfit">Why the kernel does not take this call; null if it does.</param>
    /// <exception cref="NotSupportedException">It cannot, and <see cref="CudaRuntime.Strict"/> is set.</exception>
    public static bool HasKernel(string operation, Tensor tensor, string? unfit = null)
    {
        if (tensor.device_type != DeviceType.CUDA)
            return false;
        if (CudaRuntime.IsAvailable(Math.Max(0, tensor.device_index), out var reason) && unfit is null)
            return true;
        CudaRuntime.FallBack(operation, unfit ?? reason);
        return false;
    }
}
