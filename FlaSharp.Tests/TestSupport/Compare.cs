using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.TestSupport;

/// <summary>How far a result is from what it should be: RMS(actual - expected) / RMS(expected), in float64.</summary>
public static class Compare
{
    /// <summary>The relative RMS error; infinite if a value is not finite where the expected one is. 0 if all is zero in both.</summary>
    public static double RelativeRms(Tensor actual, Tensor expected)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        Assert.Equal(expected.shape, actual.shape);
        var (a, e) = (actual.cpu().to(float64), expected.cpu().to(float64));
        if (!a.isfinite().all().ToBoolean())
            return double.PositiveInfinity;
        var difference = (a - e).square().sum().ToDouble();
        var reference = e.square().sum().ToDouble();
        return difference == 0 ? 0 : Math.Sqrt(difference / reference);
    }

    /// <summary>Fails if the relative RMS error exceeds the limit, saying of what.</summary>
    public static void Close(Tensor actual, Tensor expected, double limit, string what)
    {
        var error = RelativeRms(actual, expected);
        Assert.True(error <= limit, $"{what}: relative RMS error {error:E2} exceeds {limit:E2}.");
    }
}
