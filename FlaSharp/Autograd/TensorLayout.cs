using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>The shape, dtype and device of a tensor, without the tensor.</summary>
internal sealed class TensorLayout
{
    private readonly ScalarType _dtype;
    private readonly DeviceType _deviceType;
    private readonly int _deviceIndex;

    private TensorLayout(Tensor tensor)
    {
        Shape = new long[tensor.Rank()];
        tensor.Sizes(Shape);
        _dtype = tensor.dtype;
        _deviceType = tensor.device_type;
        _deviceIndex = tensor.device_index;
    }

    public long[] Shape { get; }

    public static TensorLayout Of(Tensor tensor) => new(tensor);

    /// <summary>A zero seen from everywhere: one element of memory.</summary>
    public Tensor Zeros()
    {
        using var zero = zeros([], _dtype, new Device(_deviceType, _deviceIndex));
        return zero.expand(Shape);
    }
}
