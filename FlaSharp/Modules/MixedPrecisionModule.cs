using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>
/// A module some of whose own parameters stay float32 when it is converted to float16 or bfloat16, as decays and step sizes must:
/// they pass through exponentials, and an update of theirs is often smaller than a bfloat16 step.
/// </summary>
public abstract class MixedPrecisionModule : nn.Module<Tensor, Tensor>
{
    private readonly string[] _fp32Names;
    private bool _hidesFp32;

    private protected MixedPrecisionModule(string name, params string[] fp32Names) : base(name) => _fp32Names = fp32Names;

    /// <inheritdoc/>
    public override IEnumerable<(string name, Parameter parameter)> named_parameters(bool recurse = true) =>
        _hidesFp32 ? base.named_parameters(recurse).Where(p => !_fp32Names.Contains(p.name)) : base.named_parameters(recurse);

    /// <inheritdoc/>
    protected override void _toEpilog(ScalarType? dtype, Device? device, bool non_blocking)
    {
        // TorchSharp converts the parameters that named_parameters lists.
        _hidesFp32 = dtype is ScalarType.Float16 or ScalarType.BFloat16;
        try
        {
            base._toEpilog(dtype, device, non_blocking);
        }
        finally
        {
            _hidesFp32 = false;
        }
        if (device is not null)
            base._toEpilog(null, device, non_blocking); // the hidden ones move, too
    }

    /// <summary>The dtype in which to make the parameter of this name.</summary>
    private protected ScalarType? DtypeOf(string parameterName, ScalarType? dtype) =>
        _fp32Names.Contains(parameterName) ? ScalarType.Float32 : dtype;

    /// <summary>A parameter that outlives the caller's dispose scope.</summary>
    private protected static Parameter MakeParameter(ReadOnlySpan<long> size, Device? device, ScalarType? dtype) =>
        (Parameter)nn.Parameter(empty(size, dtype, device)).DetachFromDisposeScope();
}
