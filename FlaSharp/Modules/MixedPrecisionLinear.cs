using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>A linear projection whose bias, and on request weight, stays float32: for gates and step sizes.</summary>
internal sealed class MixedPrecisionLinear : MixedPrecisionModule
{
    private const string WeightName = "weight";
    private const string BiasName = "bias";

    [ComponentName(Name = WeightName)]
    private readonly Parameter _weight;
    [ComponentName(Name = BiasName)]
    private readonly Parameter _bias;

    public MixedPrecisionLinear(long inFeatures, long outFeatures, bool fp32Weight, bool fp32Bias, Device? device,
        ScalarType? dtype)
        : base(nameof(MixedPrecisionLinear), [.. fp32Weight ? [WeightName] : Array.Empty<string>(),
            .. fp32Bias ? [BiasName] : Array.Empty<string>()])
    {
        _weight = MakeParameter([outFeatures, inFeatures], device, DtypeOf(WeightName, dtype));
        _bias = MakeParameter([outFeatures], device, DtypeOf(BiasName, dtype));
        ResetParameters();
        RegisterComponents();
    }

    public Parameter Weight => _weight;

    public Parameter Bias => _bias;

    /// <summary>As a new <c>nn.Linear</c>.</summary>
    public void ResetParameters()
    {
        var bound = 1 / Math.Sqrt(_weight.size(1));
        nn.init.uniform_(_weight, -bound, bound);
        nn.init.uniform_(_bias, -bound, bound);
    }

    /// <summary>x [..., in] to [..., out], computed and returned in the dtype of the weight.</summary>
    public override Tensor forward(Tensor x)
    {
        using var scope = NewDisposeScope();
        return nn.functional.linear(x.to(_weight.dtype), _weight, _bias.to(_weight.dtype)).MoveToOuterDisposeScope();
    }
}
