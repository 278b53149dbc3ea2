using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>Brings tensors into the form that the CPU kernels read: float32 and dense.</summary>
internal static class TensorConversion
{
    /// <summary>The tensor itself if it is dense float32 already, otherwise a copy in the caller's dispose scope.</summary>
    public static Tensor DenseFloat32(this Tensor tensor) => tensor.InDtype(ScalarType.Float32).Dense();

    /// <summary>The tensor itself if it is contiguous already, otherwise a copy in the caller's dispose scope.</summary>
    public static Tensor Dense(this Tensor tensor) => tensor.is_contiguous() ? tensor : tensor.contiguous();

    /// <summary>
    /// The tensor [B, T, ...] itself if its tokens are dense and evenly spaced, as those of a part of a wider tensor are; otherwise
    /// a copy in the caller's dispose scope.
    /// </summary>
    /// <param name="tensor">float32.</param>
    /// <param name="row">Elements from a token to the next, across the rows of the batch, too.</param>
    public static Tensor DenseTokens(this Tensor tensor, out int row)
    {
        var (batch, time, size) = (tensor.Size(0), tensor.Size(1), 1L);
        var isDense = true;
        for (var d = tensor.Rank() - 1; d >= 2; d--)
        {
            isDense &= tensor.Size(d) == 1 || tensor.Stride(d) == size;
            size *= tensor.Size(d);
        }
        var step = time > 1 ? tensor.Stride(1) : batch > 1 ? tensor.Stride(0) : size;
        isDense &= step >= size && step <= int.MaxValue && (batch == 1 || time == 1 || tensor.Stride(0) == time * step);
        row = (int)(isDense ? step : size);
        return isDense ? tensor : tensor.contiguous();
    }

    /// <summary>The tensor itself if it has the dtype already, otherwise a copy.</summary>
    public static Tensor InDtype(this Tensor tensor, ScalarType dtype) => tensor.dtype == dtype ? tensor : tensor.to(dtype);
}
