using FlaSharp.Interop;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>
/// The log decays of gated linear attention, logsigmoid(W1 W0 x + b) / normalizer, at most 0: a projection of low rank.
/// Its two halves are named 0 and 1 in the state dict, and the second one stays float32.
/// </summary>
internal sealed class DecayGate : nn.Module<Tensor, Tensor>
{
    [ComponentName(Name = "0")]
    private readonly Linear _down;
    [ComponentName(Name = "1")]
    private readonly MixedPrecisionLinear _up;

    private readonly double _normalizer;
    private readonly double? _minimum;

    public DecayGate(long inFeatures, long rank, long outFeatures, double normalizer, double? minimum, bool keepFp32Parameters,
        Device? device, ScalarType? dtype) : base(nameof(DecayGate))
    {
        (_normalizer, _minimum) = (normalizer, minimum);
        _down = nn.Linear(inFeatures, rank, false, device, dtype);
        _up = new MixedPrecisionLinear(rank, outFeatures, keepFp32Parameters, keepFp32Parameters, device, dtype);
        RegisterComponents();
    }

    public void ResetParameters()
    {
        _down.ResetParameters();
        _up.ResetParameters();
    }

    /// <summary>x [B, T, D] to log decays [B, T, Hkv * K], float32.</summary>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        var x = _up.forward(_down.forward(input));
        if (x.dtype.Element() is not null && CudaOperation.HasKernel(nameof(DecayGate), x))
            return new DecayGateCudaFunction(_normalizer, _minimum).Run(x)[0]!.MoveToOuterDisposeScope();
        var logDecay = nn.functional.logsigmoid(x.to(ScalarType.Float32)) / _normalizer;
        if (_minimum is { } minimum)
            logDecay = logDecay.clamp_min(minimum);
        return logDecay.MoveToOuterDisposeScope();
    }
}
