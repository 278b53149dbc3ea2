using System.Diagnostics.CodeAnalysis;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>Tensors on a GPU as the CUDA kernels take them.</summary>
internal static class KernelTensor
{
    /// <summary>
    /// The tensor [B, T, H, D] itself if its rows [D] are dense, however far apart they lie; otherwise a copy in the caller's
    /// dispose scope.
    /// </summary>
    public static Tensor DenseRows(this Tensor tensor) =>
        tensor.Size(3) == 1 || tensor.Stride(3) == 1 ? tensor : tensor.contiguous();

    /// <summary>
    /// As <see cref="DenseRows(Tensor)"/>, and a copy where a dimension is expanded, too: Hopper's copy engine knows no stride
    /// of 0.
    /// </summary>
    public static Tensor DenseRowsApart(this Tensor tensor)
    {
        for (var d = 0; d < 3; d++)
            if (tensor.Size(d) > 1 && tensor.Stride(d) == 0)
                return tensor.contiguous();
        return tensor.DenseRows();
    }

    /// <summary>
    /// The tensor [..., D] itself if it is a matrix of dense, evenly spaced rows [D], as a part of a wider one is; otherwise a
    /// copy in the caller's dispose scope. Null for null.
    /// </summary>
    /// <param name="tensor">With at least one dimension.</param>
    /// <param name="row">Elements from a row to the next.</param>
    [return: NotNullIfNotNull(nameof(tensor))]
    public static Tensor? DenseRows(this Tensor? tensor, out long row)
    {
        row = 0;
        if (tensor is null)
            return null;
        var last = tensor.Rank() - 1;
        var size = tensor.Size(last);
        var (isDense, rows) = (size == 1 || tensor.Stride(last) == 1, 1L);
        for (var d = last - 1; d >= 0; d--)
        {
            if (tensor.Size(d) == 1)
                continue;
            if (rows == 1)
                row = tensor.Stride(d);
            isDense &= tensor.Stride(d) == rows * row;
            rows *= tensor.Size(d);
        }
        if (rows > 1 && isDense)
            return tensor;
        row = size;
        return isDense ? tensor : tensor.contiguous();
    }

    /// <summary>
    /// The tensor [B, T, E] itself if its channels [E] are dense, however far apart its tokens lie; otherwise a copy in the
    /// caller's dispose scope.
    /// </summary>
    public static Tensor DenseChannels(this Tensor tensor) =>
        tensor.Size(2) == 1 || tensor.Stride(2) == 1 ? tensor : tensor.contiguous();

    /// <summary>Where a tensor with dense rows lies; for null the default, which is none. The caller keeps it alive.</summary>
    public static TensorView View(this Tensor? tensor) => tensor is null
        ? default
        : new TensorView(TensorPointer.Of(tensor), Step(tensor, 0), Step(tensor, 1), Step(tensor, 2));

    /// <summary>Like <see cref="View"/>, of a tensor [B, T, E] with dense channels as one of a single head.</summary>
    public static TensorView TokenView(this Tensor? tensor) =>
        tensor is null ? default : new TensorView(TensorPointer.Of(tensor), Step(tensor, 0), Step(tensor, 1), Head: 0);

    /// <summary>int32 numbers on a GPU. Does not wait for the copy.</summary>
    public static Tensor On(Device device, int[] numbers)
    {
        using var values = tensor(numbers);
        using var pinned = values.pin_memory(); // libtorch keeps such memory until the copy is done
        return pinned.to(device, non_blocking: true);
    }

    /// <summary>The kernels' name of a dtype; null if they have none.</summary>
    public static ElementType? Element(this ScalarType dtype) => dtype switch
    {
        ScalarType.Float32 => ElementType.Float32,
        ScalarType.BFloat16 => ElementType.BFloat16,
        ScalarType.Float16 => ElementType.Float16,
        _ => null,
    };

    // The stride of a dimension of one element means nothing, and should not make a row look misaligned.
    private static long Step(Tensor tensor, int dimension) => tensor.Size(dimension) == 1 ? 0 : tensor.Stride(dimension);
}
