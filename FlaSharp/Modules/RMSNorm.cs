using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>Root mean square norm over the last dimension: see <see cref="FlaOps.RmsNorm"/>.</summary>
public sealed class RMSNorm : nn.Module<Tensor, Tensor>
{
    [ComponentName(Name = "weight")]
    private readonly Parameter? _weight;

    private readonly long _size;
    private readonly double _eps;

    /// <summary>A norm with weights of 1.</summary>
    /// <param name="size">D, the size of the last dimension.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <param name="elementwiseAffine">Whether there is a weight [D], named "weight" in the state dict.</param>
    /// <param name="device">Of the weight; the CPU if null.</param>
    /// <param name="dtype">Of the weight; float32 if null. The input has the same dtype, or the weight is float32.</param>
    public RMSNorm(
        long size, double eps = 1e-5, bool elementwiseAffine = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(RMSNorm))
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(size);
        ArgumentOutOfRangeException.ThrowIfNegative(eps);
        (_size, _eps) = (size, eps);
        if (elementwiseAffine)
            _weight = nn.Parameter(ones(size, dtype ?? ScalarType.Float32, device));
        RegisterComponents();
    }

    /// <summary>The weight [D]; null without one.</summary>
    public Parameter? Weight => _weight;

    /// <summary>x [..., D] to [..., D], in the dtype of x.</summary>
    public override Tensor forward(Tensor x)
    {
        NormSize.Check(x, _size);
        return FlaOps.RmsNorm(x, _weight, _eps);
    }

    /// <summary>
    /// x [..., D] and the residual stream that it is added to, both [..., D], to the norm of the sum, in the dtype of x, and the
    /// sum: see <see cref="FlaOps.AddRmsNorm"/>.
    /// </summary>
    public (Tensor output, Tensor residual) forward(Tensor x, Tensor residual)
    {
        NormSize.Check(x, _size);
        return FlaOps.AddRmsNorm(x, residual, _weight, _eps);
    }
}
