using System.Runtime.Intrinsics;
using FlaSharp.Kernels.Cpu;
using Xunit;

namespace FlaSharp.Tests.Kernels;

public sealed class VectorMathTests
{
    private const double Limit = 3e-7;

    [Fact]
    public void Exp_is_accurate_where_its_value_is_a_normal_number() =>
        Check(VectorMath.Exp, Math.Exp, -86.98f, 88.72f);

    [Fact]
    public void Exp2_is_accurate_where_its_value_is_a_normal_number() =>
        Check(VectorMath.Exp2, x => Math.Pow(2, x), -125.99f, 127.49f);

    [Fact]
    public void Sigmoid_is_accurate() =>
        Check(VectorMath.Sigmoid, x => 1 / (1 + Math.Exp(-x)), -86.9f, 100);

    [Fact]
    public void Softplus_is_accurate_where_it_is_tiny_too() =>
        Check(VectorMath.Softplus, x => Math.Max(x, 0) + LogOnePlus(Math.Exp(-Math.Abs(x))), -86.9f, 200);

    [Fact]
    public void The_ends_of_the_range()
    {
        const float inf = float.PositiveInfinity;
        Expect(VectorMath.Exp, (0, 1), (-inf, 0), (-1e30f, 0), (-88, 0), (inf, inf), (1e30f, inf),
            (88.8f, inf), (float.NaN, float.NaN));
        Expect(VectorMath.Exp2, (0, 1), (1, 2), (-inf, 0), (-1e30f, 0), (-127, 0), (inf, inf),
            (128, inf), (float.NaN, float.NaN));
        Expect(VectorMath.Sigmoid, (0, 0.5f), (-inf, 0), (inf, 1), (float.NaN, float.NaN));
        Expect(VectorMath.Softplus, (-inf, 0), (inf, inf), (200, 200), (float.NaN, float.NaN));
    }

    private static double LogOnePlus(double y) => 2 * Math.Atanh(y / (2 + y));

    private static void Expect(
        Func<Vector512<float>, Vector512<float>> function, params ReadOnlySpan<(float x, float value)> cases)
    {
        foreach (var (x, value) in cases)
            for (var lane = 0; lane < Vector512<float>.Count; lane++)
                Assert.Equal(value, function(Vector512.Create(x))[lane]);
    }

    private static void Check(
        Func<Vector512<float>, Vector512<float>> function, Func<double, double> reference, float from, float to)
    {
        const int vectors = 20_000;
        var (worst, at) = (0.0, 0f);
        for (var i = 0; i < vectors; i++)
        {
            var steps = Vector512.CreateSequence(0f, 1f) + Vector512.Create(16f * i);
            var x = Vector512.Create(from) + steps * ((to - from) / (16f * vectors));
            var y = function(x);
            for (var lane = 0; lane < Vector512<float>.Count; lane++)
            {
                var expected = reference(x[lane]);
                var error = Math.Abs(y[lane] - expected) / expected;
                if (!(error <= worst))
                    (worst, at) = (error, x[lane]);
            }
        }
        Assert.True(worst <= Limit, $"Relative error {worst:E2} at {at:R}.");
    }
}
