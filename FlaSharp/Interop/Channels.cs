using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>
/// Brings a channel dimension to what kernels without tails read: float32, contiguous, and the channels of each group filled up
/// with zeros to whole vectors. Nothing is copied where the tensor is like that already.
/// </summary>
internal readonly struct Channels(long count, long groups, int lanes)
{
    private readonly long _perGroup = count / groups;
    private readonly long _paddedPerGroup = (count / groups + lanes - 1) / lanes * lanes;

    /// <summary>The size of the dimension that the kernel sees.</summary>
    public long Padded => groups * _paddedPerGroup;

    private bool IsWhole => _perGroup == _paddedPerGroup;

    /// <summary>The tensor as the kernel reads it; null for null.</summary>
    public Tensor? Pad(Tensor? tensor, int dim)
    {
        if (tensor is null || IsWhole)
            return tensor?.to(ScalarType.Float32).contiguous();
        var split = tensor.unflatten(dim, [groups, _perGroup]);
        var shape = split.shape;
        shape[dim + 1] = _paddedPerGroup;
        var padded = zeros(shape, ScalarType.Float32, tensor.device);
        padded.narrow(dim + 1, 0, _perGroup).copy_(split);
        return padded.flatten(dim, dim + 1);
    }

    /// <summary>Like <see cref="Pad"/> for [B, T, E], and leaves a part of a wider tensor where it is.</summary>
    /// <param name="tensor">[B, T, E].</param>
    /// <param name="row">Elements from a token to the next.</param>
    public Tensor PadTokens(Tensor tensor, out int row)
    {
        if (IsWhole)
            return tensor.InDtype(ScalarType.Float32).DenseTokens(out row);
        row = (int)Padded;
        return Pad(tensor, 2)!;
    }

    /// <summary>A result of the kernel without the filling; null for null.</summary>
    public Tensor? Unpad(Tensor? tensor, int dim) => tensor is null || IsWhole
        ? tensor
        : tensor.unflatten(dim, [groups, _paddedPerGroup]).narrow(dim + 1, 0, _perGroup).flatten(dim, dim + 1).contiguous();
}
