using System.Collections.Concurrent;
using FlaSharp.Kernels.Interop;

namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// A tensor [B, T, H, D] of 16-bit elements, and the box of one head and batch row that Hopper's copy engine takes of it.
/// </summary>
internal readonly record struct MappedTensor(
    TensorView View, ElementType Element, int Batch, int Time, int Heads, int Size, int BoxColumns, int BoxRows)
{
    private const int MostMaps = 1024;

    private static readonly ConcurrentDictionary<MappedTensor, TensorMap> s_maps = new();

    /// <summary>Its map, with boxes that are swizzled as wide as they are; known ones are kept.</summary>
    public TensorMap Map()
    {
        if (s_maps.TryGetValue(this, out var map))
            return map;
        if (s_maps.Count >= MostMaps)
            s_maps.Clear();
        return s_maps[this] = Encode();
    }

    private TensorMap Encode() => TensorMap.Tiled(
        Element == ElementType.BFloat16 ? TensorMapType.BFloat16 : TensorMapType.Float16, View.Data,
        [(ulong)Size, (ulong)Heads, (ulong)Time, (ulong)Batch], [Stride(View.Head), Stride(View.Time), Stride(View.Batch)],
        [(uint)BoxColumns, 1, (uint)BoxRows, 1],
        BoxColumns switch { 64 => TensorMapSwizzle.Bytes128, 32 => TensorMapSwizzle.Bytes64, _ => TensorMapSwizzle.Bytes32 });

    private ulong Stride(long elements) => (ulong)(Math.Max(elements, TensorView.MostVector) * Element.Bytes());
}
