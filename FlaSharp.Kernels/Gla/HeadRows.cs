using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// A contiguous [tokens, heads, size] array as query heads see it (the heads of a group share one of its heads), and the copies
/// between its rows and scratch rows that are padded to whole vectors.
/// </summary>
internal readonly unsafe struct HeadRows(float* data, int heads, int queryHeads, int size, float scale = 1)
{
    private readonly long _stride = (long)heads * size;
    private readonly int _group = queryHeads / heads;

    /// <summary>Row of a token: columns from <paramref name="column"/>, times the scale, zeros after the last one.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Read(int token, int queryHead, int column, float* target, int paddedCount)
    {
        var source = At(token, queryHead, column);
        var count = Math.Min(paddedCount, size - column);
        var factor = Vector512.Create(scale);
        var i = 0;
        for (; i <= count - Vector512<float>.Count; i += Vector512<float>.Count)
            (Vector512.Load(source + i) * factor).Store(target + i);
        for (; i < count; i++)
            target[i] = source[i] * scale;
        for (; i < paddedCount; i++)
            target[i] = 0;
    }

    /// <summary>The opposite of <see cref="Read"/>.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public void Write(int token, int queryHead, int column, float* source, int paddedCount)
    {
        var target = At(token, queryHead, column);
        var count = Math.Min(paddedCount, size - column);
        var factor = Vector512.Create(scale);
        var i = 0;
        for (; i <= count - Vector512<float>.Count; i += Vector512<float>.Count)
            (Vector512.Load(source + i) * factor).Store(target + i);
        for (; i < count; i++)
            target[i] = source[i] * scale;
    }

    private float* At(int token, int queryHead, int column) =>
        data + token * _stride + (long)(queryHead / _group) * size + column;
}
