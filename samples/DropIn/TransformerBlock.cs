using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using static TorchSharp.torch.nn;

namespace DropIn;

/// <summary>Mixer and MLP, each after a norm and beside a residual.</summary>
internal sealed class TransformerBlock : Module<Tensor, Tensor>
{
    private readonly LayerNorm _mixerNorm;
    private readonly Module<Tensor, Tensor> _mixer;
    private readonly LayerNorm _mlpNorm;
    private readonly Sequential _mlp;

    public TransformerBlock(int width, Module<Tensor, Tensor> mixer) : base(nameof(TransformerBlock))
    {
        _mixerNorm = LayerNorm(width);
        _mixer = mixer;
        _mlpNorm = LayerNorm(width);
        _mlp = Sequential(Linear(width, 4 * width), GELU(), Linear(4 * width, width));
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor mixed = x + _mixer.forward(_mixerNorm.forward(x));
        return (mixed + _mlp.forward(_mlpNorm.forward(mixed))).MoveToOuterDisposeScope();
    }
}
