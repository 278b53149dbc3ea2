using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>The initial bias of Mamba's step sizes.</summary>
internal static class StepSizeInit
{
    /// <summary>
    /// Fills with values whose softplus is log-uniform in [minimum, maximum], but at least floor: so the layer begins with
    /// memories of many lengths.
    /// </summary>
    public static void Fill(Tensor bias, double minimum, double maximum, double floor)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var u = rand(bias.shape, ScalarType.Float32, bias.device);
        var step = (u * (Math.Log(maximum) - Math.Log(minimum)) + Math.Log(minimum)).exp().clamp_min(floor);
        bias.copy_(step + (-(-step).expm1()).log()); // the inverse of softplus
    }

    public static void Check(double timeStepMin, double timeStepMax, double timeStepFloor)
    {
        if (!(timeStepMin > 0 && timeStepMax >= timeStepMin && timeStepFloor >= 0))
            throw new ArgumentException(
                $"The initial step sizes need 0 < timeStepMin <= timeStepMax and timeStepFloor >= 0, " +
                $"but timeStepMin = {timeStepMin}, timeStepMax = {timeStepMax} and timeStepFloor = {timeStepFloor}.", nameof(timeStepMin));
    }
}
