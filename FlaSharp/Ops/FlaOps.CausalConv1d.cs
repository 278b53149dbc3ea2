using FlaSharp.Interop;
using FlaSharp.Kernels.Conv;
using FlaSharp.Ops.Reference;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

public static partial class FlaOps
{
    private const int MostTokensInPlace = 16; // one run takes a sequence then, which is slow for long ones

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
    /// <param name="updateState">
    /// Whether the state after the last token is written over <paramref name="initialState"/>, float32, which a decoding step
    /// needs no longer; then it is the final state that is returned. The kernels do so in place for a few tokens, all else by a
    /// copy. Not while gradients are recorded, nor before the backward pass of an earlier call with that state.
    /// </param>
    /// <returns>
    /// output [B, T, E] in the dtype of x; finalState [S, E, W - 1] in float32, the initial state of whatever continues the
    /// sequences, or null.
    /// </returns>
    /// <exception cref="ArgumentException">
    /// A shape, dtype, device, activation or <paramref name="cuSeqlens"/> does not fit; or a state to update is absent, not
    /// float32, not contiguous or requires a gradient.
    /// </exception>
    /// <exception cref="InvalidOperationException">A state is to be updated while gradients are recorded.</exception>
    /// <exception cref="NotSupportedException">Its CUDA kernel cannot run, and <see cref="CudaKernels.Strict"/> is set.
    /// </exception>
    public static (Tensor output, Tensor? finalState) CausalConv1d(Tensor x, Tensor weight, Tensor? bias = null,
        string? activation = null, Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null,
        bool updateState = false)
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

        if (updateState)
        {
            Guard.Float32IfGiven(initialState);
            CheckUpdate(initialState, is_grad_enabled()
                && (x.requires_grad || weight.requires_grad || bias is { requires_grad: true }));
        }

        using var scope = NewDisposeScope();
        var inPlace = false;
        var wantsState = outputFinalState || updateState;
        Tensor output;
        Tensor? finalState;
        if (CudaOperation.HasKernel(nameof(CausalConv1d), x, Unfit(width)))
        {
            inPlace = updateState && sequences.MaxLength <= MostTokensInPlace;
            (output, finalState) = CausalConvCudaFunction.Run(
                sequences, x, weight, bias, silu, initialState, wantsState, inPlace);
        }
        else
        {
            var taps = weight.dim() == 3 ? weight.squeeze(1) : weight;
            (output, finalState) = x.device_type == DeviceType.CPU
                ? CausalConvFunction.Run(sequences, x, taps, bias, silu, initialState, wantsState)
                : CausalConv.Run(sequences, x, taps, bias, silu, initialState, wantsState);
        }

        output = output.MoveToOuterDisposeScope();
        if (!updateState)
            return (output, finalState?.MoveToOuterDisposeScope());
        if (!inPlace)
            initialState!.copy_(finalState!);
        return (output, outputFinalState ? initialState : null);
    }

    private static string? Unfit(long width) => width <= CausalConvTile.MaxWidth
        ? null
        : $"W = {width}, and the kernel takes up to {CausalConvTile.MaxWidth}.";
}
