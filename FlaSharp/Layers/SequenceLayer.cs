using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>A layer that mixes tokens along time, [B, T, D] to [B, T, D]; drops into any TorchSharp model.</summary>
public abstract class SequenceLayer : nn.Module<Tensor, Tensor>
{
    /// <summary>For the layers of this assembly.</summary>
    protected SequenceLayer(string name) : base(name) { }

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>Pending.</summary>
    public abstract Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null);
}
