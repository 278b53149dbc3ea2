namespace FlaSharp.Kernels.Runtime;

/// <summary>fla::TensorView: a tensor [B, T, H, D] with dense rows [D]; strides in elements. The default is no tensor.</summary>
internal readonly record struct TensorView(nint Data, long Batch, long Time, long Head)
{
    /// <summary>A number whose lowest bit is the largest power of 2 that divides address, in elements, and strides.</summary>
    /// <param name="type">Of the elements.</param>
    public long Multiples(ElementType type) => Data / type.Bytes() | Batch | Time | Head;
}
