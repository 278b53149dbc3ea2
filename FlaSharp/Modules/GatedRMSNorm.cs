using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>Root mean square norm with a gate: see <see cref="FlaOps.GatedRmsNorm"/>.</summary>
public sealed class GatedRMSNorm : nn.Module<Tensor, Tensor, Tensor>
{
    [ComponentName(Name = "weight")]
    private readonly Parameter? _weight;

    private readonly long _size;
    private readonly double _eps;
    private readonly string _activation;
    private readonly bool _normBeforeGate;
    private readonly long? _groupSize;

    /// <summary>A norm with weights of 1.</summary>
    /// <param name="size">D, the size of the last dimension.</param>
    /// <param name="eps">Added to the mean square.</param>
    /// <param name="elementwiseAffine">Whether there is a weight [D], named "weight" in the state dict.</param>
    /// <param name="activation">Of the gate: "swish" (also named "silu") or "sigmoid".</param>
    /// <param name="normBeforeGate">True: norm(x) * weight * act(gate). False: norm(x * act(gate)) * weight.</param>
    /// <param name="groupSize">The mean square is taken over groups of so many neighbours; it divides D. All of D if null.</param>
    /// <param name="device">Of the weight; the CPU if null.</param>
    /// <param name="dtype">Of the weight; float32 if null. The input has the same dtype, or the weight is float32.</param>
    public GatedRMSNorm(
        long size, double eps = 1e-5, bool elementwiseAffine = true, string activation = "swish", bool normBeforeGate = true,
        long? groupSize = null, Device? device = null, ScalarType? dtype = null)
        : base(nameof(GatedRMSNorm))
    {
        ArgumentOutOfRangeException.ThrowIfNegativeOrZero(size);
        ArgumentOutOfRangeException.ThrowIfNegative(eps);
        FlaOps.CheckGroupSize(size, groupSize ?? size);
        _ = FlaOps.IsSwish(activation); // checks the name
        (_size, _eps) = (size, eps);
        (_activation, _normBeforeGate, _groupSize) = (activation, normBeforeGate, groupSize);
        if (elementwiseAffine)
            _weight = nn.Parameter(ones(size, dtype ?? ScalarType.Float32, device));
        RegisterComponents();
    }

    /// <summary>The weight [D]; null without one.</summary>
    public Parameter? Weight => _weight;

    /// <summary>x, gate [..., D] to [..., D], in the dtype of x.</summary>
    public override Tensor forward(Tensor x, Tensor gate)
    {
        NormSize.Check(x, _size);
        return FlaOps.GatedRmsNorm(x, gate, _weight, _eps, _activation, _normBeforeGate, _groupSize);
    }
}
