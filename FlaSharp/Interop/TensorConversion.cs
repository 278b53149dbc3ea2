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

    /// <summary>The tensor itself if it has the dtype already, otherwise a copy.</summary>
    public static Tensor InDtype(this Tensor tensor, ScalarType dtype) => tensor.dtype == dtype ? tensor : tensor.to(dtype);
}
