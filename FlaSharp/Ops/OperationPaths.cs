using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>What computes each operation on a device.</summary>
internal static class OperationPaths
{
    private static readonly Operation[] s_operations =
    [
        new(nameof(FlaOps.Gla), Cpu: true, Cuda: true),
        new(nameof(FlaOps.SelectiveScan), Cpu: true, Cuda: true),
        new(nameof(FlaOps.Ssd), Cpu: true, Cuda: true),
        new(nameof(FlaOps.Attention), Cpu: false, Cuda: true),
        new(nameof(FlaOps.AttentionWithLogSumExp), Cpu: false, Cuda: true),
        new(nameof(FlaOps.CausalConv1d), Cpu: true, Cuda: true),
        new(nameof(FlaOps.RmsNorm), Cpu: true, Cuda: true),
        new(nameof(FlaOps.GatedRmsNorm), Cpu: true, Cuda: true),
        new(nameof(FlaOps.AddRmsNorm), Cpu: true, Cuda: true),
        new(nameof(FlaOps.RotaryEmbedding), Cpu: true, Cuda: true),
        new(nameof(FlaOps.SwiGlu), Cpu: true, Cuda: true),
    ];

    public static IReadOnlyList<OperationPath> On(Device device) => [.. s_operations.Select(operation => Of(operation, device))];

    private static OperationPath Of(Operation operation, Device device)
    {
        if (device.type == DeviceType.CPU && operation.Cpu)
            return new OperationPath(operation.Name, FlaOps.CpuPath, "A kernel for the CPU.");
        if (device.type != DeviceType.CUDA || !operation.Cuda)
            return new OperationPath(operation.Name, FlaOps.TorchPath, "There is no kernel for it on such a device.");
        return CudaRuntime.IsAvailable(Math.Max(device.index, 0), out var reason)
            ? new OperationPath(operation.Name, FlaOps.CudaPath, reason)
            : new OperationPath(operation.Name, FlaOps.TorchPath, $"Its CUDA kernel cannot run: {reason}");
    }

    /// <summary>An operation and the kernels it has.</summary>
    private sealed record Operation(string Name, bool Cpu, bool Cuda);
}
