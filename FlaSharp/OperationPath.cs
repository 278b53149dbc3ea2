namespace FlaSharp;

/// <summary>What computes an operation on a device, and why.</summary>
/// <param name="Operation">A method of <see cref="Ops.FlaOps"/>.</param>
/// <param name="Path">"cuda" or "cpu-simd", kernels of this library, or "torch", TorchSharp's operations.</param>
/// <param name="Reason">A sentence for people.</param>
public sealed record OperationPath(string Operation, string Path, string Reason);
