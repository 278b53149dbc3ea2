using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using static TorchSharp.torch.nn;

namespace DropIn;

/// <summary>An ordinary TorchSharp transformer, without a word of FlaSharp: [B, T] tokens to [B, T, vocabulary] logits.</summary>
internal sealed class TinyTransformer : Module<Tensor, Tensor>
{
    private readonly Embedding _tokens;
    private readonly Embedding _positions;
    private readonly ModuleList<TransformerBlock> _blocks;
    private readonly LayerNorm _norm;
    private readonly Linear _head;

    /// <param name="vocabulary">Number of tokens.</param>
    /// <param name="length">Longest sequence.</param>
    /// <param name="width">Model width.</param>
    /// <param name="blocks">Number of blocks.</param>
    /// <param name="createMixer">Makes what mixes tokens along time, [B, T, width] to [B, T, width].</param>
    public TinyTransformer(int vocabulary, int length, int width, int blocks, Func<Module<Tensor, Tensor>> createMixer)
        : base(nameof(TinyTransformer))
    {
        _tokens = Embedding(vocabulary, width);
        _positions = Embedding(length, width);
        _blocks = ModuleList(Enumerable.Range(0, blocks).Select(_ => new TransformerBlock(width, createMixer())).ToArray());
        _norm = LayerNorm(width);
        _head = Linear(width, vocabulary);
        RegisterComponents();
    }

    public override Tensor forward(Tensor ids)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor x = _tokens.forward(ids) + _positions.forward(arange(ids.size(1), device: ids.device));
        foreach (TransformerBlock block in _blocks)
            x = block.forward(x);
        return _head.forward(_norm.forward(x)).MoveToOuterDisposeScope();
    }
}
