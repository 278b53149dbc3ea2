using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>Brings tensors into the form that the CPU kernels read: float32 and dense.</summary>
internal static class TensorConversion
{
    /// <summary>The tensor itself if it is dense float32 already, otherwise a copy in the caller's dispose scope.</summary>
    public static Tensor DenseFloat32(this Tensor tensor)
    {
        var converted = tensor.dtype == ScalarType.Float32 ? tensor : tensor.to(ScalarType.Float32);
        return converted.is_contiguous() ? converted : converted.contiguous();
    }

    /// <summary>
    /// The tensor [B, T, ...] itself if its tokens are dense and evenly spaced, as those of a part of a wider tensor are; otherwise
    /// a copy in the caller's dispose scope.
    /// </summary>
    /// <param name="tensor">float32.</param>
    /// <param name="row">Elements from a token to the next, across the rows of the batch, too.</param>
    public static Tensor DenseTokens(this Tensor tensor, out int row)
    {
        var (batch, time, size) = (tensor.size(0), tensor.size(1), 1L);
        var isDense = true;
        for (var d = (int)tensor.dim() - 1; d >= 2; d--)
        {
            isDense &= tensor.size(d) == 1 || tensor.stride(d) == size;
            size *= tensor.size(d);
        }
        var step = time > 1 ? tensor.stride(1) : batch > 1 ? tensor.stride(0) : size;
        isDense &= step >= size && step <= int.MaxValue && (batch == 1 || time == 1 || tensor.stride(0) == time * step);
        row = (int)(isDense ? step : size);
        return isDense ? tensor : tensor.contiguous();
    }

    /// <summary>The tensor itself if it has the dtype already, otherwise a copy.</summary>
    public static Tensor InDtype(this Tensor tensor, ScalarType dtype) => tensor.dtype == dtype ? tensor : tensor.to(dtype);
}
