using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace FlaSharp.Kernels.Cpu;

/// <summary>Elementary functions on vectors of 16 floats (two or four hardware vectors where 512-bit ones are missing).</summary>
internal static class VectorMath
{
    private const float MinExp = -87.33654f; // below it the result is not a normal number: taken as 0
    private const float MaxExp = 88.72283f;  // above it the result is infinite

    /// <summary>e^x to about 2 ulp; 0 below -87.3 and for -inf, +inf above 88.7, NaN for NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp(Vector512<float> x)
    {
        // e^x = 2^n e^r with |r| <= ln(2) / 2; ln(2) in two parts (Cody and Waite) keeps r exact.
        var clamped = Vector512.Min(Vector512.Max(x, Vector512.Create(MinExp)), Vector512.Create(MaxExp));
        var n = Vector512.Round(clamped * Vector512.Create(1.44269504f));
        var r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-0.693359375f), clamped);
        r = Vector512.FusedMultiplyAdd(n, Vector512.Create(2.12194440e-4f), r);

        var p = Vector512.Create(1.0f / 5040);
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.0f / 720));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.0f / 120));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.0f / 24));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.0f / 6));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(0.5f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512<float>.One);
        p = Vector512.FusedMultiplyAdd(p, r, Vector512<float>.One);

        // n reaches 128, whose power of two is not a float: multiply by 2^(n-1) and by 2.
        var power = ((Vector512.ConvertToInt32(n) + Vector512.Create(126)) << 23).AsSingle();
        var result = p * power * Vector512.Create(2.0f);
        result = Vector512.ConditionalSelect(Vector512.LessThan(x, Vector512.Create(MinExp)), Vector512<float>.Zero, result);
        result = Vector512.ConditionalSelect(
            Vector512.GreaterThan(x, Vector512.Create(MaxExp)), Vector512.Create(float.PositiveInfinity), result);
        return Vector512.ConditionalSelect(Vector512.Equals(x, x), result, x);
    }

    /// <summary>1 / (1 + e^-x).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Sigmoid(Vector512<float> x) => Vector512<float>.One / (Vector512<float>.One + Exp(-x));
}
