using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The cosines and sines of a rotary embedding, float32 [..., rotaryDim / 2]. Without autograd history.</summary>
internal static class RotaryAngles
{
    /// <summary>
    /// Of position * theta^(-2i / rotaryDim), taken in float64: in float32 the angle of position 1,000,000 is off by 0.03.
    /// </summary>
    public static (Tensor cos, Tensor sin) Of(Tensor positions, double theta, long rotaryDim)
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        // Metal has no float64: there the angles are computed on the CPU.
        var exact = positions.device_type == DeviceType.MPS ? positions.cpu() : positions;
        var frequencies = new double[rotaryDim / 2];
        for (var i = 0; i < frequencies.Length; i++)
            frequencies[i] = Math.Pow(theta, -2.0 * i / rotaryDim);

        var angles = exact.to(ScalarType.Float64).unsqueeze(-1) * tensor(frequencies, device: exact.device);
        var cos = angles.cos().to(ScalarType.Float32).to(positions.device);
        var sin = angles.sin().to(ScalarType.Float32).to(positions.device);
        return (cos.MoveToOuterDisposeScope(), sin.MoveToOuterDisposeScope());
    }
}
