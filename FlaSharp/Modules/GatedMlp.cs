using FlaSharp.Interop;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>
/// The gated feed-forward block of Llama: down(silu(gate(x)) * up(x)) (Shazeer, "GLU variants improve transformer", 2020).
/// Parameters: <c>gate_proj</c>, <c>up_proj</c> [I, D] and <c>down_proj</c> [D, I].
/// </summary>
public sealed class GatedMlp : nn.Module<Tensor, Tensor>
{
    [ComponentName(Name = "gate_proj")]
    private readonly Linear _gateProj;
    [ComponentName(Name = "up_proj")]
    private readonly Linear _upProj;
    [ComponentName(Name = "down_proj")]
    private readonly Linear _downProj;

    /// <summary>Makes the block.</summary>
    /// <param name="hiddenSize">D.</param>
    /// <param name="intermediateSize">I; null for 2/3 * hiddenRatio * D, rounded up to a multiple of 256.</param>
    /// <param name="hiddenRatio">The size of the ungated block with as many weights, in units of D.</param>
    /// <param name="bias">Whether the three projections have a bias.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    public GatedMlp(long hiddenSize, long? intermediateSize = null, double hiddenRatio = 4, bool bias = false,
        Device? device = null, ScalarType? dtype = null) : base(nameof(GatedMlp))
    {
        Guard.AtLeast(hiddenSize, 1);
        var inner = intermediateSize ?? ((long)(hiddenSize * hiddenRatio * 2 / 3) + 255) / 256 * 256;
        Guard.AtLeast(inner, 1, nameof(intermediateSize));
        _gateProj = nn.Linear(hiddenSize, inner, bias, device, dtype);
        _upProj = nn.Linear(hiddenSize, inner, bias, device, dtype);
        _downProj = nn.Linear(inner, hiddenSize, bias, device, dtype);
        RegisterComponents();
    }

    /// <summary>x [..., D] to [..., D].</summary>
    public override Tensor forward(Tensor input)
    {
        using var scope = NewDisposeScope();
        return _downProj.forward(FlaOps.SwiGlu(_gateProj.forward(input), _upProj.forward(input))).MoveToOuterDisposeScope();
    }
}
