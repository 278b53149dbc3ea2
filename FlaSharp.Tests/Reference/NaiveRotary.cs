using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Reference;

/// <summary>The rotary embedding pair by pair, with angles of System.Math; float64 in the tests.</summary>
public static class NaiveRotary
{
    public static Tensor Rotate(Tensor x, Tensor positions, double theta, bool interleaved, long rotaryDim)
    {
        var (batch, time, size) = (x.size(0), x.size(1), x.size(3));
        var at = positions.to(int64).expand(batch, time);
        var matrices = new double[batch, time, size, size]; // features out = features in times this
        for (var b = 0; b < batch; b++)
            for (var t = 0; t < time; t++)
            {
                for (var i = rotaryDim; i < size; i++)
                    matrices[b, t, i, i] = 1;
                for (var i = 0; i < rotaryDim / 2; i++)
                {
                    var (sin, cos) = Math.SinCos(at[b, t].ToInt64() * Math.Pow(theta, -2.0 * i / rotaryDim));
                    var (first, second) = interleaved ? (2 * i, 2 * i + 1) : (i, i + (int)rotaryDim / 2);
                    (matrices[b, t, first, first], matrices[b, t, second, first]) = (cos, -sin);
                    (matrices[b, t, second, second], matrices[b, t, first, second]) = (cos, sin);
                }
            }
        return matmul(x, tensor(matrices, dtype: x.dtype));
    }
}
