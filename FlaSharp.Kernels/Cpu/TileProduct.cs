using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace FlaSharp.Kernels.Cpu;

/// <summary>
/// Products of matrices that fit the first-level cache, on one core. What a general library spends on packing and dispatch is
/// much at these sizes.
/// </summary>
internal static unsafe class TileProduct
{
    /// <summary>c[i, j] (+)= sum over l of a[i, l] b[l, j].</summary>
    /// <param name="m">Rows of a and c.</param>
    /// <param name="n">Columns of b and c: a multiple of 16.</param>
    /// <param name="k">Columns of a, rows of b.</param>
    /// <param name="a">Element (i, l) lies at i aRow + l aColumn, so that a may be transposed.</param>
    /// <param name="aRow">In elements.</param>
    /// <param name="aColumn">In elements.</param>
    /// <param name="b">Rows of n adjacent elements, <paramref name="bRow"/> apart.</param>
    /// <param name="bRow">In elements.</param>
    /// <param name="c">Rows of n adjacent elements, <paramref name="cRow"/> apart.</param>
    /// <param name="cRow">In elements.</param>
    /// <param name="accumulate">Whether to add to what c holds.</param>
    public static void Run(
        int m, int n, int k, float* a, nint aRow, nint aColumn, float* b, nint bRow, float* c, nint cRow, bool accumulate)
    {
        // A panel of b, 16 or 32 columns, stays in the cache while the rows of a pass by.
        for (var j = 0; j < n; j += 32)
        {
            var wide = n - j >= 32;
            var i = 0;
            for (; i + 8 <= m; i += 8)
                if (wide)
                    Tile8x2(k, a + i * aRow, aRow, aColumn, b + j, bRow, c + i * cRow + j, cRow, accumulate);
                else
                    Tile8x1(k, a + i * aRow, aRow, aColumn, b + j, bRow, c + i * cRow + j, cRow, accumulate);
            for (; i < m; i++)
                if (wide)
                    Tile1x2(k, a + i * aRow, aColumn, b + j, bRow, c + i * cRow + j, accumulate);
                else
                    Tile1x1(k, a + i * aRow, aColumn, b + j, bRow, c + i * cRow + j, accumulate);
        }
    }

    private static void Tile8x2(int k, float* a, nint aRow, nint aColumn, float* b, nint bRow, float* c, nint cRow, bool accumulate)
    {
        nint row2 = 2 * aRow, row3 = 3 * aRow;
        var a4 = a + 4 * aRow;
        Vector512<float> s00 = default, s01 = default;
        Vector512<float> s10 = default, s11 = default;
        Vector512<float> s20 = default, s21 = default;
        Vector512<float> s30 = default, s31 = default;
        Vector512<float> s40 = default, s41 = default;
        Vector512<float> s50 = default, s51 = default;
        Vector512<float> s60 = default, s61 = default;
        Vector512<float> s70 = default, s71 = default;
        for (; k > 0; k--)
        {
            var b0 = Vector512.Load(b);
            var b1 = Vector512.Load(b + 16);
            var x0 = Vector512.Create(*a);
            s00 = Vector512.FusedMultiplyAdd(x0, b0, s00);
            s01 = Vector512.FusedMultiplyAdd(x0, b1, s01);
            var x1 = Vector512.Create(a[aRow]);
            s10 = Vector512.FusedMultiplyAdd(x1, b0, s10);
            s11 = Vector512.FusedMultiplyAdd(x1, b1, s11);
            var x2 = Vector512.Create(a[row2]);
            s20 = Vector512.FusedMultiplyAdd(x2, b0, s20);
            s21 = Vector512.FusedMultiplyAdd(x2, b1, s21);
            var x3 = Vector512.Create(a[row3]);
            s30 = Vector512.FusedMultiplyAdd(x3, b0, s30);
            s31 = Vector512.FusedMultiplyAdd(x3, b1, s31);
            var x4 = Vector512.Create(*a4);
            s40 = Vector512.FusedMultiplyAdd(x4, b0, s40);
            s41 = Vector512.FusedMultiplyAdd(x4, b1, s41);
            var x5 = Vector512.Create(a4[aRow]);
            s50 = Vector512.FusedMultiplyAdd(x5, b0, s50);
            s51 = Vector512.FusedMultiplyAdd(x5, b1, s51);
            var x6 = Vector512.Create(a4[row2]);
            s60 = Vector512.FusedMultiplyAdd(x6, b0, s60);
            s61 = Vector512.FusedMultiplyAdd(x6, b1, s61);
            var x7 = Vector512.Create(a4[row3]);
            s70 = Vector512.FusedMultiplyAdd(x7, b0, s70);
            s71 = Vector512.FusedMultiplyAdd(x7, b1, s71);
            a += aColumn;
            a4 += aColumn;
            b += bRow;
        }
        Put(c, s00, accumulate);
        Put(c + 16, s01, accumulate);
        Put(c + cRow, s10, accumulate);
        Put(c + cRow + 16, s11, accumulate);
        Put(c + 2 * cRow, s20, accumulate);
        Put(c + 2 * cRow + 16, s21, accumulate);
        Put(c + 3 * cRow, s30, accumulate);
        Put(c + 3 * cRow + 16, s31, accumulate);
        Put(c + 4 * cRow, s40, accumulate);
        Put(c + 4 * cRow + 16, s41, accumulate);
        Put(c + 5 * cRow, s50, accumulate);
        Put(c + 5 * cRow + 16, s51, accumulate);
        Put(c + 6 * cRow, s60, accumulate);
        Put(c + 6 * cRow + 16, s61, accumulate);
        Put(c + 7 * cRow, s70, accumulate);
        Put(c + 7 * cRow + 16, s71, accumulate);
    }

    private static void Tile8x1(int k, float* a, nint aRow, nint aColumn, float* b, nint bRow, float* c, nint cRow, bool accumulate)
    {
        nint row2 = 2 * aRow, row3 = 3 * aRow;
        var a4 = a + 4 * aRow;
        var s00 = Vector512<float>.Zero;
        var s10 = Vector512<float>.Zero;
        var s20 = Vector512<float>.Zero;
        var s30 = Vector512<float>.Zero;
        var s40 = Vector512<float>.Zero;
        var s50 = Vector512<float>.Zero;
        var s60 = Vector512<float>.Zero;
        var s70 = Vector512<float>.Zero;
        for (; k > 0; k--)
        {
            var b0 = Vector512.Load(b);
            var x0 = Vector512.Create(*a);
            s00 = Vector512.FusedMultiplyAdd(x0, b0, s00);
            var x1 = Vector512.Create(a[aRow]);
            s10 = Vector512.FusedMultiplyAdd(x1, b0, s10);
            var x2 = Vector512.Create(a[row2]);
            s20 = Vector512.FusedMultiplyAdd(x2, b0, s20);
            var x3 = Vector512.Create(a[row3]);
            s30 = Vector512.FusedMultiplyAdd(x3, b0, s30);
            var x4 = Vector512.Create(*a4);
            s40 = Vector512.FusedMultiplyAdd(x4, b0, s40);
            var x5 = Vector512.Create(a4[aRow]);
            s50 = Vector512.FusedMultiplyAdd(x5, b0, s50);
            var x6 = Vector512.Create(a4[row2]);
            s60 = Vector512.FusedMultiplyAdd(x6, b0, s60);
            var x7 = Vector512.Create(a4[row3]);
            s70 = Vector512.FusedMultiplyAdd(x7, b0, s70);
            a += aColumn;
            a4 += aColumn;
            b += bRow;
        }
        Put(c, s00, accumulate);
        Put(c + cRow, s10, accumulate);
        Put(c + 2 * cRow, s20, accumulate);
        Put(c + 3 * cRow, s30, accumulate);
        Put(c + 4 * cRow, s40, accumulate);
        Put(c + 5 * cRow, s50, accumulate);
        Put(c + 6 * cRow, s60, accumulate);
        Put(c + 7 * cRow, s70, accumulate);
    }

    private static void Tile1x2(int k, float* a, nint aColumn, float* b, nint bRow, float* c, bool accumulate)
    {
        Vector512<float> s00 = default, s01 = default;
        for (; k > 0; k--)
        {
            var b0 = Vector512.Load(b);
            var b1 = Vector512.Load(b + 16);
            var x0 = Vector512.Create(*a);
            s00 = Vector512.FusedMultiplyAdd(x0, b0, s00);
            s01 = Vector512.FusedMultiplyAdd(x0, b1, s01);
            a += aColumn;
            b += bRow;
        }
        Put(c, s00, accumulate);
        Put(c + 16, s01, accumulate);
    }

    private static void Tile1x1(int k, float* a, nint aColumn, float* b, nint bRow, float* c, bool accumulate)
    {
        var s00 = Vector512<float>.Zero;
        for (; k > 0; k--)
        {
            var b0 = Vector512.Load(b);
            var x0 = Vector512.Create(*a);
            s00 = Vector512.FusedMultiplyAdd(x0, b0, s00);
            a += aColumn;
            b += bRow;
        }
        Put(c, s00, accumulate);
    }

    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    private static void Put(float* c, Vector512<float> sum, bool accumulate) =>
        (accumulate ? Vector512.Load(c) + sum : sum).Store(c);
}
