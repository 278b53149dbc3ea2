using FlaSharp.Interop;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    /// <summary>
    /// The depthwise causal convolution of Mamba and of short convolutions:
    /// <c>y[t, e] = f(bias[e] + sum over w of weight[e, w] * x[t - (W - 1) + w, e])</c>. What lies before the first token is the
    /// initial state, or zero. All inputs have gradients.
    /// </summary>
    /// <param name="x">[B, T, E], float32, float16 or bfloat16, channels last; any strides.</param>
    /// <param name="weight">[E, 1, W] (as a <c>Conv1d</c> holds it) or [E, W], any W >= 1; float32 or the dtype of x.</param>
    /// <param name="bias">[E]; float32 or the dtype of x.</param>
    /// <param name="activation">null, or "silu", also called "swish".</param>
    /// <param name="initialState">
    /// [S, E, W - 1], the last W - 1 inputs before the first token, oldest first; float32 or the dtype of x. S is B, or the
    /// number of packed sequences.
    /// </param>
    /// <param name="outputFinalState">Whether to return the state after the last token.</param>
    /// <param name="cuSeqlens">
    /// int32 or int64 [S + 1]: B is 1, and sequence s holds the tokens from cuSeqlens[s] up to cuSeqlens[s + 1]. Sequences do not
    /// see each other; an empty one keeps its state.
    /// </param>
    /// <returns>
    /// output [B, T, E] in the dtype of x; finalState [S, E, W - 1] in float32, the initial state of whatever continues the
    /// sequences, or null.
    /// </returns>
    /// <exception cref="ArgumentException">
    /// A shape, dtype, device, activation or <paramref name="cuSeqlens"/> does not fit.
    /// </exception>
    public static (Tensor output, Tensor? finalState) CausalConv1d(Tensor x, Tensor weight, Tensor? bias = null,
        string? activation = null, Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null)
    {
        Guard.Shape(x, "[B, T, E]", [-1, -1, -1]);
        Guard.NotEmpty(x, "[B, T, E]");
        Guard.Floating(x);
        var channels = x.size(2);
        ArgumentNullException.ThrowIfNull(weight);
        if (weight.dim() == 3)
            Guard.Shape(weight, "[E, 1, W]", [channels, 1, -1]);
        else
            Guard.Shape(weight, "[E, W] or [E, 1, W]", [channels, -1]);
        Guard.NotEmpty(weight, "[E, W] or [E, 1, W]");
        var width = weight.size(-1);
        Guard.ShapeIfGiven(bias, "[E]", [channels]);
        var silu = activation switch
        {
            null => false,
            "silu" or "swish" => true,
            _ => throw new ArgumentException(
                $"activation must be null, \"silu\" or \"swish\", but is \"{activation}\".", nameof(activation)),
        };
        var sequences = Sequences.Of(x.size(0), x.size(1), cuSeqlens);
        Guard.ShapeIfGiven(initialState, "[S, E, W - 1]", [sequences.Count, channels, width - 1]);
        Guard.Float32OrDtypeOf(
            x, nameof(x), (weight, nameof(weight)), (bias, nameof(bias)), (initialState, nameof(initialState)));
        Guard.Operands(x, nameof(x), (weight, nameof(weight)), (bias, nameof(bias)), (initialState, nameof(initialState)));

        using var scope = NewDisposeScope();
        var taps = weight.dim() == 3 ? weight.squeeze(1) : weight;
        var (output, finalState) = x.device_type == DeviceType.CPU
            ? CausalConvFunction.Run(sequences, x, taps, bias, silu, initialState, outputFinalState)
            : CausalConv.Run(sequences, x, taps, bias, silu, initialState, outputFinalState);
        return (output.MoveToOuterDisposeScope(), finalState?.MoveToOuterDisposeScope());
    }
}
