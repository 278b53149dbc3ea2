using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>What computes each operation on a device.</summary>
internal static class OperationPaths
{
    private static readonly (string operation, bool hasCpuKernel, bool hasCudaKernel)[] s_operations =
    [
        (nameof(FlaOps.Gla), true, false),
        (nameof(FlaOps.SelectiveScan), true, false),
        (nameof(FlaOps.Ssd), true, false),
        (nameof(FlaOps.Attention), false, false),
        (nameof(FlaOps.CausalConv1d), true, false),
        (nameof(FlaOps.RmsNorm), true, false),
        (nameof(FlaOps.GatedRmsNorm), true, false),
        (nameof(FlaOps.RotaryEmbedding), true, false),
        (nameof(FlaOps.SwiGlu), true, false),
    ];

    public static IReadOnlyList<OperationPath> On(Device device)
    {
        if (device.type == DeviceType.CPU)
            return Of(operation => operation.hasCpuKernel, FlaOps.CpuPath, FlaOps.TorchPath, "A kernel for the CPU.");
        if (device.type != DeviceType.CUDA)
            return Of(_ => false, "", FlaOps.TorchPath, "");
        return CudaRuntime.IsAvailable(Math.Max(device.index, 0), out var reason)
            ? Of(operation => operation.hasCudaKernel, FlaOps.CudaPath, FlaOps.TorchPath, reason)
            : Of(operation => operation.hasCudaKernel, FlaOps.TorchPath, FlaOps.TorchPath, $"Its CUDA kernel cannot run: {reason}");
    }

    private static OperationPath[] Of(
        Func<(string operation, bool hasCpuKernel, bool hasCudaKernel), bool> hasKernel, string kernelPath, string otherPath, string reason) =>
        [.. s_operations.Select(operation => hasKernel(operation)
            ? new OperationPath(operation.operation, kernelPath, reason)
            : new OperationPath(operation.operation, otherPath, "There is no kernel for it on such a device."))];
}
