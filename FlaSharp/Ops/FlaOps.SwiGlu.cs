using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>The gated activation silu(gate) * up, computed in float32.</summary>
    /// <param name="gate">Any shape; float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="up">Shape, dtype and device of <paramref name="gate"/>. Differentiable.</param>
    /// <returns>Shape and dtype of <paramref name="gate"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype or device does not fit.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    /// <remarks>Shazeer, GLU Variants Improve Transformer (2020).</remarks>
    public static Tensor SwiGlu(Tensor gate, Tensor up)
    {
        ArgumentNullException.ThrowIfNull(gate);
        Guard.Floating(gate);
        Guard.Shape(up, "of gate", gate.Sizes(stackalloc long[gate.Rank()]));
        Guard.SameDtype(gate, nameof(gate), (up, nameof(up)));
        Guard.Operands(gate, nameof(gate), (up, nameof(up)));
        if (gate.device_type == DeviceType.CPU)
            return new SwiGluFunction().Run(gate, up)[0]!;
        return CudaOperation.HasKernel(nameof(SwiGlu), gate)
            ? new SwiGluCudaFunction().Run(gate, up)[0]!
            : SwiGluReference(gate, up);
    }

    internal static Tensor SwiGluReference(Tensor gate, Tensor up)
    {
        using var scope = NewDisposeScope();
        var product = nn.functional.silu(gate.InDtype(ScalarType.Float32)) * up.InDtype(ScalarType.Float32);
        return product.to(gate.dtype).MoveToOuterDisposeScope();
    }
}
