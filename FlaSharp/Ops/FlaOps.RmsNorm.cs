using FlaSharp.Interop;
using FlaSharp.Kernels.Norm;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// Root mean square norm over the last dimension: x / sqrt(mean(x²) + eps) * weight, computed in float32.
    /// </summary>
    /// <param name="x">[..., D], float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="weight">[D], float32 or the dtype of <paramref name="x"/>; null for ones. Differentiable.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <returns>[..., D], in the dtype of <paramref name="x"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype or device does not fit.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    /// <remarks>Zhang and Sennrich, Root Mean Square Layer Normalization (2019).</remarks>
    public static Tensor RmsNorm(Tensor x, Tensor? weight, double eps = 1e-5)
    {
        CheckNormInput(x, weight, eps);
        if (x.device_type == DeviceType.CPU)
            return new RmsNormFunction(eps).Run(x, weight)[0]!;
        return HasNormKernel(nameof(RmsNorm), x, x.LastSize())
            ? new RmsNormCudaFunction(eps, x.LastSize()).Run(x, null, weight, null)[0]!
            : NormReference.RmsNorm(x, weight, eps);
    }

    /// <summary>
    /// Adds x to a residual stream and norms the sum: what stands between two layers of a model, in one pass over memory.
    /// </summary>
    /// <param name="x">[..., D], float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="residual">[..., D], float32 or the dtype of <paramref name="x"/>. Differentiable.</param>
    /// <param name="weight">[D], float32 or the dtype of <paramref name="x"/>; null for ones. Differentiable.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <returns>
    /// The norm of the sum, as <see cref="RmsNorm"/> has it, in the dtype of <paramref name="x"/>; and the sum, in the dtype of
    /// <paramref name="residual"/>, which is the residual of whatever comes next. Both [..., D].
    /// </returns>
    /// <exception cref="ArgumentException">A shape, dtype or device does not fit.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static (Tensor output, Tensor residual) AddRmsNorm(Tensor x, Tensor residual, Tensor? weight, double eps = 1e-5)
    {
        CheckNormInput(x, weight, eps);
        ArgumentNullException.ThrowIfNull(residual);
        Guard.Shape(residual, "of x", x.Sizes(stackalloc long[x.Rank()]));
        Guard.Float32OrDtypeOf(x, nameof(x), (residual, nameof(residual)));
        Guard.Operands(x, nameof(x), (residual, nameof(residual)));
        if (x.device_type != DeviceType.CPU && HasNormKernel(nameof(AddRmsNorm), x, x.LastSize()))
        {
            var outputs = new RmsNormCudaFunction(eps, x.LastSize()).Run(x, null, weight, residual);
            return (outputs[0]!, outputs[1]!);
        }

        using var scope = NewDisposeScope();
        var sum = residual.add(x.InDtype(residual.dtype), HeldScalar.One);
        var output = x.device_type == DeviceType.CPU
            ? new RmsNormFunction(eps).Run(sum, weight)[0]!
            : NormReference.RmsNorm(sum, weight, eps);
        return (output.InDtype(x.dtype).MoveToOuterDisposeScope(), sum.MoveToOuterDisposeScope());
    }

    /// <summary>
    /// Root mean square norm with a gate, computed in float32: norm(x) * weight * act(gate), or, with the gate inside, as Mamba-2
    /// has it, norm(x * act(gate)) * weight.
    /// </summary>
    /// <param name="x">[..., D], float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="gate">[..., D], shape and dtype of <paramref name="x"/>. Differentiable.</param>
    /// <param name="weight">[D], float32 or the dtype of <paramref name="x"/>; null for ones. Differentiable.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <param name="activation">"swish" (also named "silu") or "sigmoid".</param>
    /// <param name="normBeforeGate">Whether the gate multiplies the normed x or enters the norm.</param>
    /// <param name="groupSize">The mean square is taken over groups of so many neighbours; it divides D. All of D if null.</param>
    /// <returns>[..., D], in the dtype of <paramref name="x"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static Tensor GatedRmsNorm(Tensor x, Tensor gate, Tensor? weight, double eps = 1e-5,
        string activation = "swish", bool normBeforeGate = true, long? groupSize = null)
    {
        CheckNormInput(x, weight, eps);
        ArgumentNullException.ThrowIfNull(gate);
        Guard.Shape(gate, "of x", x.Sizes(stackalloc long[x.Rank()]));
        Guard.SameDtype(x, nameof(x), (gate, nameof(gate)));
        Guard.Operands(x, nameof(x), (gate, nameof(gate)));
        var isSwish = IsSwish(activation);
        var group = groupSize ?? x.LastSize();
        CheckGroupSize(x.LastSize(), group);
        if (x.device_type == DeviceType.CPU)
            return new GatedRmsNormFunction(eps, isSwish, normBeforeGate, group).Run(x, gate, weight)[0]!;
        return HasNormKernel(nameof(GatedRmsNorm), x, group)
            ? new RmsNormCudaFunction(eps, group, isSwish, normBeforeGate).Run(x, gate, weight, null)[0]!
            : NormReference.GatedRmsNorm(x, gate, weight, eps, isSwish, normBeforeGate, group);
    }

    internal static bool IsSwish(string activation) => activation switch
    {
        "swish" or "silu" => true,
        "sigmoid" => false,
        _ => throw new ArgumentException(
            $"activation must be \"swish\", \"silu\" or \"sigmoid\", but is \"{activation}\".", nameof(activation)),
    };

    internal static void CheckGroupSize(long size, long groupSize)
    {
        if (groupSize <= 0 || size % groupSize != 0)
            throw new ArgumentException($"groupSize must divide D = {size}, but is {groupSize}.", nameof(groupSize));
    }

    private static bool HasNormKernel(string operation, Tensor x, long groupSize) => CudaOperation.HasKernel(operation, x,
        groupSize <= RmsNormTile.MaxSize
            ? null
            : $"it norms {groupSize} elements at once, and the kernel takes up to {RmsNormTile.MaxSize}.");

    private static void CheckNormInput(Tensor x, Tensor? weight, double eps)
    {
        ArgumentNullException.ThrowIfNull(x);
        Guard.Floating(x);
        if (x.Rank() == 0 || x.LastSize() == 0)
            throw new ArgumentException($"x must have shape [..., D] with D >= 1, but has [{string.Join(", ", x.shape)}].", nameof(x));
        ArgumentOutOfRangeException.ThrowIfNegative(eps);
        Guard.ShapeIfGiven(weight, "[D]", [x.LastSize()]);
        Guard.Float32OrDtypeOf(x, nameof(x), (weight, nameof(weight)));
        Guard.Operands(x, nameof(x), (weight, nameof(weight)));
    }
}
