using static TorchSharp.torch;

namespace FlaSharp.IO;

/// <summary>One tensor as the header describes it; <c>Begin</c> and <c>End</c> count bytes from the end of the header.</summary>
internal sealed record SafeTensorsEntry(string Name, ScalarType DType, long[] Shape, long Begin, long End)
{
    public long Length => End - Begin;

    /// <summary>The bytes that a dense tensor takes; false where they, or the strides libtorch derives, pass 63 bits.</summary>
    public static bool TryCountBytes(ScalarType dtype, ReadOnlySpan<long> shape, out long bytes)
    {
        bytes = 0;
        var empty = false;
        long extent = SafeTensorsDType.SizeOf(dtype);
        foreach (var size in shape)
        {
            empty |= size == 0;
            var high = Math.BigMul(extent, Math.Max(size, 1), out var low);
            if (high != 0 || low < 0)
                return false;
            extent = low;
        }
        bytes = empty ? 0 : extent;
        return true;
    }
}
