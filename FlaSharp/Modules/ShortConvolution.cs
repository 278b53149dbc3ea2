using FlaSharp.Interop;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>
/// A causal convolution over the last W tokens of each channel, optionally followed by SiLU: what gated linear attention and
/// Mamba put before their recurrence. Parameters: <c>weight</c> [E, 1, W] and, on request, <c>bias</c> [E].
/// </summary>
/// <remarks>
/// Widths up to 32 run on kernels on a CUDA GPU, in float32, float16 and bfloat16, and are bitwise repeatable: see
/// <see cref="FlaOps.CausalConv1d"/>.
/// </remarks>
public sealed class ShortConvolution : nn.Module<Tensor, Tensor>
{
    [ComponentName(Name = "weight")]
    private readonly Parameter _weight;
    [ComponentName(Name = "bias")]
    private readonly Parameter? _bias;
    private readonly string? _activation;

    /// <summary>Makes the convolution with weights as a new <c>nn.Conv1d</c> of E groups has them.</summary>
    /// <param name="size">E, the number of channels.</param>
    /// <param name="kernelSize">W, at least 1.</param>
    /// <param name="bias">Whether to add a bias per channel.</param>
    /// <param name="activation">"silu" (or "swish"), or null for none.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    /// <exception cref="ArgumentException">A size below 1, or another activation.</exception>
    public ShortConvolution(long size, int kernelSize = 4, bool bias = false, string? activation = "silu",
        Device? device = null, ScalarType? dtype = null) : base(nameof(ShortConvolution))
    {
        Guard.AtLeast(size, 1);
        Guard.AtLeast(kernelSize, 1);
        Guard.OneOf(activation, ["silu", "swish", null]);
        _activation = activation;
        _weight = (Parameter)nn.Parameter(empty([size, 1, kernelSize], dtype, device)).DetachFromDisposeScope();
        _bias = bias ? (Parameter)nn.Parameter(empty([size], dtype, device)).DetachFromDisposeScope() : null;
        ResetParameters();
        RegisterComponents();
    }

    /// <summary>Draws weight and bias anew from U(-1/sqrt(W), 1/sqrt(W)).</summary>
    public void ResetParameters()
    {
        var bound = 1 / Math.Sqrt(_weight.size(2));
        nn.init.uniform_(_weight, -bound, bound);
        if (_bias is not null)
            nn.init.uniform_(_bias, -bound, bound);
    }

    /// <summary>Convolves x [B, T, E], each row from its beginning.</summary>
    public override Tensor forward(Tensor input) =>
        FlaOps.CausalConv1d(input, _weight, _bias, _activation).output;

    /// <summary>Convolves x [B, T, E], going on from a state; see <see cref="FlaOps.CausalConv1d"/>.</summary>
    /// <param name="x">[B, T, E].</param>
    /// <param name="initialState">float32 [S, E, W - 1], the inputs before x, oldest first; null for zeros.</param>
    /// <param name="outputFinalState">Whether to return the last W - 1 inputs.</param>
    /// <param name="cuSeqlens">Bounds of packed sequences, int [S + 1]; B must be 1 then.</param>
    /// <param name="updateState">Whether to write the final state over the initial one.</param>
    public (Tensor output, Tensor? finalState) forward(Tensor x, Tensor? initialState, bool outputFinalState,
        Tensor? cuSeqlens = null, bool updateState = false) =>
        FlaOps.CausalConv1d(x, _weight, _bias, _activation, initialState, outputFinalState, cuSeqlens, updateState);
}
