using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;
using static FlaSharp.Kernels.Cpu.PartialVector;

namespace FlaSharp.Kernels.Norm;

/// <summary>
/// y = x r w with r = 1 / sqrt(mean(x^2) + eps), row by row. All matrices are dense [rows, size]; w is [size] or null for ones.
/// </summary>
internal static unsafe class RmsNormCpu
{
    public static void Forward(float* x, float* weight, float* y, long rows, long size, float eps) =>
        new RowBlocks(rows, size).ForEach((first, end) =>
        {
            for (var row = first; row < end; row++)
                ForwardRow(x + row * size, weight, y + row * size, size, eps);
        });

    /// <summary>dx, and dw if <paramref name="dWeight"/> is not null.</summary>
    public static void Backward(
        float* x, float* weight, float* dy, float* dx, float* dWeight, long rows, long size, float eps)
    {
        var blocks = new RowBlocks(rows, size);
        if (dWeight is null)
            blocks.ForEach((first, end) => BackwardRows(first, end, null));
        else
            blocks.ForEachWithSum(dWeight, BackwardRows);

        void BackwardRows(long first, long end, float* sum)
        {
            for (var row = first; row < end; row++)
                BackwardRow(x + row * size, weight, dy + row * size, dx + row * size, sum, size, eps);
        }
    }

    private static void ForwardRow(float* x, float* weight, float* y, long size, float eps)
    {
        var squares = Vector512<float>.Zero;
        for (long i = 0; i < size; i += Vector512<float>.Count)
        {
            var xi = Load(x + i, size - i);
            squares = Vector512.FusedMultiplyAdd(xi, xi, squares);
        }

        var r = Vector512.Create(1 / MathF.Sqrt(Vector512.Sum(squares) / size + eps));
        for (long i = 0; i < size; i += Vector512<float>.Count)
        {
            var normed = Load(x + i, size - i) * r;
            Store(weight is null ? normed : normed * Load(weight + i, size - i), y + i, size - i);
        }
    }

    /// <summary>With n = x r: dx = r (w dy - n mean(w dy n)), dw += dy n.</summary>
    private static void BackwardRow(
        float* x, float* weight, float* dy, float* dx, float* dWeight, long size, float eps)
    {
        var squares = Vector512<float>.Zero;
        var products = Vector512<float>.Zero; // of x and w dy
        for (long i = 0; i < size; i += Vector512<float>.Count)
        {
            var xi = Load(x + i, size - i);
            var dn = Load(dy + i, size - i);
            if (weight is not null)
                dn *= Load(weight + i, size - i);
            squares = Vector512.FusedMultiplyAdd(xi, xi, squares);
            products = Vector512.FusedMultiplyAdd(xi, dn, products);
        }

        var scale = 1 / MathF.Sqrt(Vector512.Sum(squares) / size + eps);
        var r = Vector512.Create(scale);
        var mean = Vector512.Create(Vector512.Sum(products) * scale / size);
        for (long i = 0; i < size; i += Vector512<float>.Count)
        {
            var normed = Load(x + i, size - i) * r;
            var dyi = Load(dy + i, size - i);
            var dn = weight is null ? dyi : dyi * Load(weight + i, size - i);
            Store((dn - normed * mean) * r, dx + i, size - i);
            if (dWeight is not null)
                Store(Vector512.FusedMultiplyAdd(dyi, normed, Load(dWeight + i, size - i)), dWeight + i, size - i);
        }
    }
}
