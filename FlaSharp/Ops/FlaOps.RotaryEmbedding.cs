using FlaSharp.Interop;
using FlaSharp.Kernels.Rotary;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// Rotary position embedding: turns each pair of features by position * theta^(-2i / rotaryDim). The angles are computed in
    /// float64, or in whole 2^-64 of a turn, and the rotation in float32.
    /// </summary>
    /// <param name="x">[B, T, H, K], float32, float16 or bfloat16. Differentiable.</param>
    /// <param name="positions">int32 or int64 [T] or [B, T].</param>
    /// <param name="theta">The base of the frequencies.</param>
    /// <param name="interleaved">
    /// False: pair i is (i, i + rotaryDim / 2), as in GPT-NeoX and Llama. True: (2i, 2i + 1), as in GPT-J.
    /// </param>
    /// <param name="rotaryDim">How many leading features turn; even, at most K. All if null.</param>
    /// <returns>[B, T, H, K], in the dtype of <paramref name="x"/>.</returns>
    /// <exception cref="ArgumentException">A shape, dtype, device or option does not fit.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    /// <remarks>Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding (2021).</remarks>
    public static Tensor RotaryEmbedding(Tensor x, Tensor positions, double theta = 10000.0,
        bool interleaved = false, long? rotaryDim = null)
    {
        CheckRotaryInput(x, positions);
        var dim = rotaryDim ?? x.size(3);
        CheckRotaryOptions(dim, theta);
        if (dim > x.size(3))
            throw new ArgumentException($"rotaryDim must be at most K = {x.size(3)}, but is {dim}.", nameof(rotaryDim));

        if (HasRotaryKernel(x, dim))
            return new RotaryCudaFunction(theta, dim, interleaved).Run(x, positions)[0]!;
        using var scope = NewDisposeScope();
        var (cos, sin) = RotaryAngles.Of(positions, theta, dim);
        return Rotate(x, cos, sin, interleaved).MoveToOuterDisposeScope();
    }

    /// <summary>The rotation by given cosines and sines, float32 [T or B, T, rotaryDim / 2].</summary>
    internal static Tensor Rotate(Tensor x, Tensor cos, Tensor sin, bool interleaved) =>
        x.device_type == DeviceType.CPU
            ? new RotaryFunction(interleaved).Run(x, cos, sin)[0]!
            : RotaryReference.Rotate(x, cos, sin, interleaved);

    internal static bool HasRotaryKernel(Tensor x, long rotaryDim) =>
        CudaOperation.HasKernel(nameof(RotaryEmbedding), x, rotaryDim <= RotaryTurns.MaxDim
            ? null
            : $"{rotaryDim} features turn, and the kernel takes up to {RotaryTurns.MaxDim}.");

    internal static void CheckRotaryOptions(long rotaryDim, double theta)
    {
        if (rotaryDim <= 0 || rotaryDim % 2 != 0)
            throw new ArgumentException(
                $"rotaryDim must be even and at least 2, because features turn in pairs, but is {rotaryDim}.", nameof(rotaryDim));
        if (!(theta > 0) || double.IsInfinity(theta))
            throw new ArgumentException($"theta must be positive and finite, but is {theta}.", nameof(theta));
    }

    internal static void CheckRotaryInput(Tensor x, Tensor positions)
    {
        CheckRotaryInput(x);
        ArgumentNullException.ThrowIfNull(positions);
        if (positions.dtype is not (ScalarType.Int32 or ScalarType.Int64))
            throw new ArgumentException($"positions must be int32 or int64, but is {positions.dtype}.", nameof(positions));
        if (positions.dim() == 2)
            Guard.Shape(positions, "[B, T]", [x.size(0), x.size(1)]);
        else
            Guard.Shape(positions, "[T] or [B, T]", [x.size(1)]);
        Guard.Operands(x, nameof(x), (positions, nameof(positions)));
    }

    internal static void CheckRotaryInput(Tensor x)
    {
        Guard.Shape(x, "[B, T, H, K]", [-1, -1, -1, -1]);
        Guard.NotEmpty(x, "[B, T, H, K]");
        Guard.Floating(x);
    }
}
