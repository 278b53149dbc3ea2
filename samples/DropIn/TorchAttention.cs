using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using static TorchSharp.torch.nn;

namespace DropIn;

/// <summary>The attention a TorchSharp program has today: causal, on TorchSharp's scaled_dot_product_attention.</summary>
internal sealed class TorchAttention : Module<Tensor, Tensor>
{
    private readonly int _heads;
    private readonly Linear _qkv;
    private readonly Linear _output;

    public TorchAttention(int width, int heads) : base(nameof(TorchAttention))
    {
        _heads = heads;
        _qkv = Linear(width, 3 * width, hasBias: false);
        _output = Linear(width, width, hasBias: false);
        RegisterComponents();
    }

    public override Tensor forward(Tensor x)
    {
        using DisposeScope scope = NewDisposeScope();
        (long batch, long time, long width) = (x.size(0), x.size(1), x.size(2));
        Tensor[] qkv = _qkv.forward(x).view(batch, time, 3, _heads, width / _heads).permute(2, 0, 3, 1, 4).unbind();
        Tensor mixed = functional.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], is_casual: true);
        return _output.forward(mixed.transpose(1, 2).reshape(batch, time, width)).MoveToOuterDisposeScope();
    }
}
