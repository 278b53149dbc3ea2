using System.Numerics;

namespace FlaSharp.Kernels.Runtime;

/// <summary>fla::TensorView: a tensor [B, T, H, D] with dense rows [D]; strides in elements. The default is no tensor.</summary>
internal readonly record struct TensorView(nint Data, long Batch, long Time, long Head)
{
    /// <summary>The most of a kernel's constant VECTOR: 16 bytes of 16-bit elements.</summary>
    public const int MostVector = 8;

    /// <summary>A number whose lowest bit is the largest power of 2 that divides address, in elements, and strides.</summary>
    /// <param name="type">Of the elements.</param>
    public long Multiples(ElementType type) => Data / type.Bytes() | Batch | Time | Head;

    /// <summary>How many elements, up to <see cref="MostVector"/>, are aligned together in every row of all views.</summary>
    /// <param name="type">Of the elements.</param>
    /// <param name="sizes">Of the rows, also of dense tensors beside the views: their binary or.</param>
    public static int Vector(ElementType type, int sizes, params ReadOnlySpan<TensorView> views)
    {
        var multiples = (long)sizes | MostVector;
        foreach (var view in views)
            multiples |= view.Multiples(type);
        return 1 << BitOperations.TrailingZeroCount(multiples);
    }
}
