using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>How a tensor [..., D] is cut along its last dimension into parts, each of a shape of its own there.</summary>
internal sealed class TensorParts
{
    private readonly long[][] _shapes;

    /// <param name="whole">[..., D].</param>
    /// <param name="shapes">What each part has in place of D; the products of the sizes add up to D.</param>
    public TensorParts(Tensor whole, long[][] shapes)
    {
        _shapes = shapes;
        WholeSizes = whole.Sizes(new long[whole.Rank()]).ToArray();
    }

    public int Count => _shapes.Length;

    public long[] WholeSizes { get; }

    /// <summary>The parts of the tensor, or of another one of its sizes: views.</summary>
    public Tensor[] All(Tensor whole)
    {
        var parts = new Tensor[Count];
        for (var i = 0; i < parts.Length; i++)
            parts[i] = Cut(whole, i);
        return parts;
    }

    /// <summary>One of them.</summary>
    public Tensor Cut(Tensor whole, int part)
    {
        var (offset, outer, shape) = (0L, WholeSizes.Length - 1, _shapes[part]);
        for (var i = 0; i < part; i++)
            offset += Product(_shapes[i]);
        var (sizes, strides) = (new long[outer + shape.Length], new long[outer + shape.Length]);
        for (var d = 0; d < outer; d++)
            (sizes[d], strides[d]) = (WholeSizes[d], whole.Stride(d));
        var stride = whole.Stride(outer);
        offset *= stride;
        for (var d = shape.Length - 1; d >= 0; d--)
        {
            (sizes[outer + d], strides[outer + d]) = (shape[d], stride);
            stride *= shape[d];
        }
        return whole.as_strided(sizes, strides, whole.storage_offset() + offset);
    }

    private static long Product(long[] sizes)
    {
        var product = 1L;
        foreach (var size in sizes)
            product *= size;
        return product;
    }
}
