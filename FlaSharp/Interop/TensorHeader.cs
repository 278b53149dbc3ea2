using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>
/// Sizes, strides and device of a tensor in a fraction of the time that TorchSharp's own functions take: these ask after each call
/// whether it failed, and let the garbage collector in. Reading a dimension that exists cannot fail, and is done at once.
/// </summary>
internal static unsafe class TensorHeader
{
    private static readonly delegate* unmanaged[SuppressGCTransition]<nint, long> s_rank =
        (delegate* unmanaged[SuppressGCTransition]<nint, long>)TorchExports.Find("THSTensor_ndimension");

    private static readonly delegate* unmanaged[SuppressGCTransition]<nint, long, long> s_size =
        (delegate* unmanaged[SuppressGCTransition]<nint, long, long>)TorchExports.Find("THSTensor_size");

    private static readonly delegate* unmanaged[SuppressGCTransition]<nint, long, long> s_stride =
        (delegate* unmanaged[SuppressGCTransition]<nint, long, long>)TorchExports.Find("THSTensor_stride");

    private static readonly delegate* unmanaged[SuppressGCTransition]<nint, int> s_deviceType =
        (delegate* unmanaged[SuppressGCTransition]<nint, int>)TorchExports.Find("THSTensor_device_type");

    private static readonly delegate* unmanaged[SuppressGCTransition]<nint, int> s_deviceIndex =
        (delegate* unmanaged[SuppressGCTransition]<nint, int>)TorchExports.Find("THSTensor_device_index");

    public static int Rank(this Tensor tensor) => (int)s_rank(tensor.Handle);

    /// <param name="tensor">Of any kind.</param>
    /// <param name="dimension">From 0 to below the rank.</param>
    public static long Size(this Tensor tensor, int dimension) => s_size(tensor.Handle, dimension);

    /// <summary>Of the last dimension.</summary>
    /// <param name="tensor">With at least one dimension.</param>
    public static long LastSize(this Tensor tensor) => tensor.Size(tensor.Rank() - 1);

    /// <summary>All sizes, in the first places of the buffer, which has room for them.</summary>
    public static ReadOnlySpan<long> Sizes(this Tensor tensor, Span<long> buffer)
    {
        var sizes = buffer[..tensor.Rank()];
        for (var i = 0; i < sizes.Length; i++)
            sizes[i] = tensor.Size(i);
        return sizes;
    }

    /// <summary>Kind and number of the device; the number is -1 where there is one device alone.</summary>
    public static (DeviceType type, int index) Place(this Tensor tensor) =>
        ((DeviceType)s_deviceType(tensor.Handle), s_deviceIndex(tensor.Handle));

    /// <param name="tensor">Of any kind.</param>
    /// <param name="dimension">From 0 to below the rank.</param>
    public static long Stride(this Tensor tensor, int dimension) => s_stride(tensor.Handle, dimension);
}
