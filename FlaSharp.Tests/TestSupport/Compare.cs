using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.TestSupport;

/// <summary>How far a result is from what it should be: RMS(actual - expected) / RMS(expected), in float64.</summary>
public static class Compare
{
    /// <summary>The relative RMS error; infinite if a value is not finite where the expected one is. 0 if all is zero in both.</summary>
    public static double RelativeRms(Tensor actual, Tensor expected) => RelativeRms(actual, expected, Norm(expected));

    /// <summary>Fails if the relative RMS error exceeds the limit, saying of what.</summary>
    public static void Close(Tensor actual, Tensor expected, double limit, string what)
    {
        var error = RelativeRms(actual, expected);
        Assert.True(error <= limit, $"{what}: relative RMS error {error:E2} exceeds {limit:E2}.");
    }

    /// <summary>
    /// Like <see cref="Close"/> for a gradient that sums one term per token. Where the terms happen to cancel, a sum near zero is
    /// no scale for their rounding: then the scale is the root of the sum of their squares, the usual size of such a sum.
    /// </summary>
    /// <param name="actual">The sum.</param>
    /// <param name="terms">[B, T, ...] that make up the sum.</param>
    /// <param name="limit">Of the relative RMS error.</param>
    /// <param name="what">For the message.</param>
    public static void SumClose(Tensor actual, Tensor terms, double limit, string what)
    {
        using var scope = NewDisposeScope();
        var expected = terms.sum([0L, 1L]).view_as(actual);
        var error = RelativeRms(actual, expected, Math.Max(Norm(expected), Norm(terms)));
        Assert.True(error <= limit, $"{what}: relative RMS error {error:E2} exceeds {limit:E2}.");
    }

    private static double RelativeRms(Tensor actual, Tensor expected, double scale)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        Assert.Equal(expected.shape, actual.shape);
        if (!actual.isfinite().all().ToBoolean())
            return double.PositiveInfinity;
        var difference = Norm(actual.cpu().to(float64) - expected.cpu().to(float64));
        return difference == 0 ? 0 : difference / scale;
    }

    private static double Norm(Tensor x)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var wide = x.cpu().to(float64);
        return Math.Sqrt((wide * wide).sum().ToDouble()); // not square(): its hidden scalar may be freed during the native call
    }
}
