using System.Runtime.CompilerServices;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// A tiled tensor map (CUtensorMap), which tells the GPU's copy engine how a tensor lies in memory. A field of a kernel's
/// parameters: there it lies at a multiple of 64 bytes from their start.
/// </summary>
[InlineArray(16)]
internal struct TensorMap
{
    private const int Alignment = 64;
    private const int MaxRank = 5;
    private const int L2Promotion128Bytes = 2;

    private ulong _first;

    /// <summary>Encodes a map; out-of-bounds elements read as zero.</summary>
    /// <param name="type">Of an element.</param>
    /// <param name="address">A multiple of 16.</param>
    /// <param name="sizes">Elements of each dimension, the contiguous one first.</param>
    /// <param name="strides">Bytes from one element to the next of each dimension but the first: multiples of 16.</param>
    /// <param name="box">Elements of a tile in each dimension, at most 256.</param>
    /// <param name="swizzle">How a tile lies in shared memory.</param>
    /// <exception cref="CudaException">The driver refuses it.</exception>
    public static unsafe TensorMap Tiled(TensorMapType type, nint address,
        ReadOnlySpan<ulong> sizes, ReadOnlySpan<ulong> strides, ReadOnlySpan<uint> box, TensorMapSwizzle swizzle)
    {
        if (sizes.Length is 0 or > MaxRank || strides.Length != sizes.Length - 1 || box.Length != sizes.Length)
            throw new ArgumentException(
                $"A tensor map has 1 to {MaxRank} sizes, as many of the box and one stride fewer, but got "
                + $"{sizes.Length}, {box.Length} and {strides.Length}.");
        var buffer = stackalloc byte[sizeof(TensorMap) + Alignment];
        var map = (TensorMap*)(((nint)buffer + Alignment - 1) & -Alignment);
        var steps = stackalloc uint[MaxRank] { 1, 1, 1, 1, 1 };
        fixed (ulong* size = sizes)
        fixed (ulong* stride = strides)
        fixed (uint* tile = box)
            CudaException.ThrowIfFailed(
                CudaDriver.cuTensorMapEncodeTiled(map, type, (uint)sizes.Length, (void*)address, size, stride, tile, steps,
                    interleave: 0, swizzle, L2Promotion128Bytes, outOfBounds: 0),
                $"cuTensorMapEncodeTiled, {type}{Text(sizes)}, strides {Text(strides)}, box {Text(box)}, swizzle {swizzle}");
        return *map;
    }

    private static string Text<T>(ReadOnlySpan<T> values) => $"[{string.Join(", ", values.ToArray())}]";
}
