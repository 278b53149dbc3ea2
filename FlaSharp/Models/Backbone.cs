using FlaSharp.Modules;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>A model without its head: embeddings, blocks and the last norm.</summary>
internal sealed class Backbone : nn.Module<Tensor, Tensor>
{
    private readonly Embedding _embeddings;
    private readonly ModuleList<Block> _layers;
    private readonly RMSNorm _norm;
    private readonly bool _float32Residual;

    public Backbone(ModelConfig config, Device? device, ScalarType? dtype) : base(nameof(Backbone))
    {
        _embeddings = nn.Embedding(config.VocabSize, config.HiddenSize, device: device, dtype: dtype);
        _layers = new ModuleList<Block>(
            [.. Enumerable.Range(0, config.NumHiddenLayers).Select(layer => new Block(config, layer, device, dtype))]);
        _norm = new RMSNorm(config.HiddenSize, config.NormEps, device: device, dtype: dtype);
        _float32Residual = config.Float32Residual;
        register_module(config.Names.Embeddings, _embeddings);
        register_module("layers", _layers);
        register_module(config.Names.FinalNorm, _norm);
    }

    /// <summary>The embedding matrix [vocabulary, D].</summary>
    public Tensor EmbeddingWeight => _embeddings.weight!;

    /// <inheritdoc/>
    public override Tensor forward(Tensor input) => forward(input, null, null);

    /// <param name="inputIds">int64 [B, T].</param>
    /// <param name="cuSeqlens">The bounds of packed sequences, if B is 1.</param>
    /// <param name="state">What was there before.</param>
    /// <returns>[B, T, D] in the dtype of the weights, normalised.</returns>
    public Tensor forward(Tensor inputIds, Tensor? cuSeqlens, ModelState? state)
    {
        using var scope = NewDisposeScope();
        cuSeqlens = cuSeqlens?.cpu(); // once, and not in each layer
        var embedded = _embeddings.forward(inputIds);
        var x = new Residual(_float32Residual ? embedded.to(ScalarType.Float32) : embedded);
        for (var i = 0; i < _layers.Count; i++)
            x = _layers[i].forward(x, cuSeqlens, state?.Layers[i]);
        return x.Norm(_norm).normed.MoveToOuterDisposeScope();
    }

    /// <summary>The fields are registered above, under the names of the architecture.</summary>
    protected override void RegisterComponents() { }
}
