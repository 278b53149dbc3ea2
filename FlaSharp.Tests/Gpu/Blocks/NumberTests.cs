using FlaSharp.Kernels.Runtime;
using FlaSharp.Tests.Kernels;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static FlaSharp.Tests.Gpu.Blocks.BlockTest;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Functions and conversions of single numbers.</summary>
public sealed class NumberTests
{
    private const float Inf = float.PositiveInfinity, NotANumber = float.NaN;

    [GpuFact]
    public void Powers_of_two_and_the_larger_one()
    {
        using var scope = NewDisposeScope();
        float[] xs = [0, -1, 3, -20, 0.5f, -0.3f, -126, -127, -150, -Inf, Inf, NotANumber, 2, NotANumber];
        float[] ys = [1, -2, 3, Inf, -Inf, 0, 0, 0, -149, 0, 0, 5, NotANumber, NotANumber];
        var (x, y) = (tensor(xs), tensor(ys));
        var (z, w) = (NaN(xs.Length), NaN(xs.Length));
        Run(BlockKernels.Numbers("functions", ElementType.BFloat16), x, y, z, w, rows: xs.Length);
        Exact(w, maximum(x, y), "the larger one"); // NaN if one is
        for (var i = 0; i < xs.Length; i++)
        {
            var (power, expected) = (z[i].ToSingle(), xs[i] < -126 ? 0 : Math.Pow(2, xs[i]));
            if (double.IsFinite(expected))
                Assert.True(Math.Abs(power - expected) <= expected * Math.Pow(2, -21), $"2^{xs[i]} is {power}");
            else
                Assert.Equal((float)expected, power);
        }
    }

    [GpuFact]
    public void All_numbers_of_16_bits_become_float32_and_back()
    {
        using var scope = NewDisposeScope();
        foreach (var type in HalfTypes)
        {
            var x = Indices(int16, 1 << 16);
            var wide = tensor([.. Enumerable.Range(0, 1 << 16).Select(bits => Widen((ushort)bits, type))]);
            // Between two neighbours, as some of these are, the nearest one counts.
            var y = (where(wide.isfinite(), wide, ones_like(wide)) * (1 + (1 / 512f))) + 1e-7f;
            var (z, w) = (NaN(1 << 16), zeros(1 << 16, dtype: type));
            Run(BlockKernels.Numbers("conversions", Element(type)), x, y, z, w, rows: 1 << 16);
            Exact(z, wide, $"{type} to float32");
            Exact(w, y.to(type), $"float32 to {type}");
        }
    }

    private static float Widen(ushort bits, ScalarType type) => type == ScalarType.BFloat16
        ? BitConverter.Int32BitsToSingle(bits << 16)
        : (float)BitConverter.UInt16BitsToHalf(bits);
}
