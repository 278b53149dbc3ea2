using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace FlaSharp.Kernels.Cpu;

/// <summary>Vectors at the end of a row, where fewer than 16 floats may be left: one loop body serves the whole row.</summary>
internal static unsafe class PartialVector
{
    /// <summary>Loads min(<paramref name="count"/>, 16) floats; the rest of the vector is 0.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Load(float* source, long count) =>
        count >= Vector512<float>.Count ? Vector512.Load(source) : LoadFirst(source, (int)count);

    /// <summary>Stores the first min(<paramref name="count"/>, 16) floats.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static void Store(Vector512<float> value, float* target, long count)
    {
        if (count >= Vector512<float>.Count)
            value.Store(target);
        else
            StoreFirst(value, target, (int)count);
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static Vector512<float> LoadFirst(float* source, int count)
    {
        var value = Vector512<float>.Zero;
        Unsafe.CopyBlockUnaligned(&value, source, (uint)(count * sizeof(float)));
        return value;
    }

    [MethodImpl(MethodImplOptions.NoInlining)]
    private static void StoreFirst(Vector512<float> value, float* target, int count) =>
        Unsafe.CopyBlockUnaligned(target, &value, (uint)(count * sizeof(float)));
}
