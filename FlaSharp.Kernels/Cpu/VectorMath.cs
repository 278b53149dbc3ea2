using System.Runtime.CompilerServices;
using System.Runtime.Intrinsics;

namespace FlaSharp.Kernels.Cpu;

/// <summary>Elementary functions on vectors of 16 floats (two or four hardware vectors where 512-bit ones are missing).</summary>
/// <remarks>
/// Powers of two are built from the bits of n + 1.5 * 2^23, which hold the rounded n. Clamping n to where its power becomes 0 or
/// infinite makes comparisons for the ends of the range needless. The native minimum and maximum give their second operand if
/// one is NaN, so NaN passes through.
/// </remarks>
internal static class VectorMath
{
    public const float Log2E = 1.44269504f;

    private const float RoundingShift = 12582912; // 1.5 * 2^23: adding it rounds to an integer

    /// <summary>e^x to 2e-7; 0 below -86.9 (near the least normal number) and for -inf, +inf above 88.7, NaN for NaN.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp(Vector512<float> x)
    {
        // e^x = 2^n e^r with |r| <= ln(2) / 2; ln(2) in two parts (Cody and Waite) keeps r exact.
        var clamped = Vector512.MinNative(Vector512.Create(89f), Vector512.MaxNative(Vector512.Create(-87.5f), x));
        const float shift = RoundingShift + 126; // n reaches 128, whose power is not a float: multiply by 2^(n-1) and by 2
        var shifted = Vector512.FusedMultiplyAdd(clamped, Vector512.Create(Log2E), Vector512.Create(shift));
        var n = shifted - Vector512.Create(shift);
        var r = Vector512.FusedMultiplyAdd(n, Vector512.Create(-0.693359375f), clamped);
        r = Vector512.FusedMultiplyAdd(n, Vector512.Create(2.12194440e-4f), r);

        var p = Vector512.Create(1.3941108e-3f);
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(8.3751264e-3f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(4.1666353e-2f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.6666416e-1f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(0.5f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512<float>.One);
        p = Vector512.FusedMultiplyAdd(p, r, Vector512<float>.One);
        p *= (shifted.AsInt32() << 23).AsSingle();
        return p + p;
    }

    /// <summary>
    /// 2^x to 2e-7, for decays: cheaper than <see cref="Exp"/> where factors can be folded into x. 0 below -126.5 and for -inf,
    /// +inf above 127.5, NaN for NaN.
    /// </summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Exp2(Vector512<float> x)
    {
        var clamped = Vector512.MinNative(Vector512.Create(128f), Vector512.MaxNative(Vector512.Create(-127f), x));
        const float shift = RoundingShift + 127;
        var shifted = clamped + Vector512.Create(shift);
        var r = clamped - (shifted - Vector512.Create(shift));

        var p = Vector512.Create(1.5461445e-4f);
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(1.3400428e-3f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(9.6180567e-3f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(5.5503272e-2f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(2.4022651e-1f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512.Create(6.9314721e-1f));
        p = Vector512.FusedMultiplyAdd(p, r, Vector512<float>.One);
        return p * (shifted.AsInt32() << 23).AsSingle();
    }

    /// <summary>1 / (1 + e^-x).</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Sigmoid(Vector512<float> x) => Vector512<float>.One / (Vector512<float>.One + Exp(-x));

    /// <summary>ln(1 + e^x) to 3e-7 relative, also where it is tiny.</summary>
    [MethodImpl(MethodImplOptions.AggressiveInlining)]
    public static Vector512<float> Softplus(Vector512<float> x)
    {
        // max(x, 0) + ln(1 + y) with y = e^-|x| <= 1, and ln(1 + y) = 2 artanh(y / (2 + y)), a fast series.
        var y = Exp(-Vector512.Abs(x));
        var s = y / (Vector512.Create(2f) + y);
        var q = s * s;
        var p = Vector512.Create(2f / 13);
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f / 11));
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f / 9));
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f / 7));
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f / 5));
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f / 3));
        p = Vector512.FusedMultiplyAdd(p, q, Vector512.Create(2f));
        return Vector512.FusedMultiplyAdd(p, s, Vector512.MaxNative(Vector512<float>.Zero, x));
    }
}
