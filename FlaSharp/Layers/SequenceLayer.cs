using FlaSharp.Interop;
using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>A layer that mixes tokens along time, [B, T, D] to [B, T, D]; drops into any TorchSharp model.</summary>
/// <remarks>
/// Decays, step sizes and gates stay float32 under <c>.to(bfloat16)</c> unless the layer was made with keepFp32Parameters: false.
/// </remarks>
public abstract class SequenceLayer : MixedPrecisionModule
{
    private protected SequenceLayer(string name, long hiddenSize, Device? device, params string[] fp32Names) : base(name, fp32Names)
    {
        Guard.AtLeast(hiddenSize, 1);
        GpuSeed.Follow(device);
        HiddenSize = hiddenSize;
    }

    /// <summary>D, the size of the last dimension of input and output.</summary>
    public long HiddenSize { get; }

    /// <summary>Mixes each row of x from its beginning.</summary>
    /// <param name="input">[B, T, D] in the dtype of the weights.</param>
    /// <returns>[B, T, D]; token t depends on the tokens up to t of its row.</returns>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>Mixes tokens, leaving out padding or keeping packed sequences apart, and going on from a state.</summary>
    /// <param name="x">[B, T, D] in the dtype of the weights. Differentiable.</param>
    /// <param name="attentionMask">
    /// [B, T], 1 at tokens and 0 at padding, which may lie left, right or in between. The result is that of the rows without
    /// their padding; at padding the output and the gradient of x are 0. Any dtype that holds 0 and 1.
    /// </param>
    /// <param name="cuSeqlens">
    /// int32 or int64 [S + 1], from 0 to T, not decreasing: B is 1 and sequence s holds the tokens from cuSeqlens[s] up to
    /// cuSeqlens[s + 1]. Sequences do not see each other. Not together with a mask.
    /// </param>
    /// <param name="state">
    /// What the rows (or packed sequences) held before x; empty at their beginning. It is moved on to the end of x, so that the
    /// next call may bring any number of further tokens. A row without any token leaves its state as it was.
    /// </param>
    /// <returns>[B, T, D] in the dtype of x.</returns>
    /// <exception cref="ArgumentException">
    /// A shape, dtype or device does not fit, mask and cuSeqlens are both given, or the state is that of another batch size or
    /// kind of layer.
    /// </exception>
    public Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null)
    {
        Guard.Shape(x, "[B, T, D]", [-1, -1, HiddenSize]);
        Guard.NotEmpty(x, "[B, T, D]");
        Guard.SameDtype(InputWeight, "the weights", (x, nameof(x)));
        Guard.Operands(InputWeight, "the weights", (x, nameof(x)));
        if (attentionMask is not null && cuSeqlens is not null)
            throw new ArgumentException("Give attentionMask or cuSeqlens, not both: packed sequences have no padding.",
                nameof(cuSeqlens));

        using var scope = NewDisposeScope();
        var padding = attentionMask is null ? null : Padding.From(attentionMask, x);
        if (padding is null)
            return Run(x, cuSeqlens?.cpu(), state).MoveToOuterDisposeScope();
        if (padding.TokenCount == 0)
            return zeros_like(x).MoveToOuterDisposeScope();
        return padding.Unpack(Run(padding.Pack(x), padding.CuSeqlens, state)).MoveToOuterDisposeScope();
    }

    /// <summary>Draws all parameters anew.</summary>
    public abstract void ResetParameters();

    /// <summary>The weight that x meets first: its dtype and device are those that x must have.</summary>
    private protected abstract Tensor InputWeight { get; }

    /// <summary>The layer itself, in the caller's dispose scope. Updates the state's tensors, if any, at its end.</summary>
    private protected abstract Tensor Mix(Tensor x, Tensor? cuSeqlens, Sequences sequences, LayerState? state);

    private Tensor Run(Tensor x, Tensor? cuSeqlens, LayerState? state)
    {
        var sequences = Sequences.Of(x.size(0), x.size(1), cuSeqlens);
        state?.CheckFits(GetName(), sequences.Count, nameof(state));
        var output = Mix(x, cuSeqlens, sequences, state);
        state?.Advance(GetName(), sequences);
        return output;
    }
}
