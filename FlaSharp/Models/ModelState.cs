using FlaSharp.Layers;

namespace FlaSharp.Models;

/// <summary>
/// What a model remembers of the rows of a batch, one <see cref="LayerState"/> per block: made empty by
/// <see cref="CausalLM.NewState"/>, filled and moved on by each forward pass that it is given to.
/// </summary>
public sealed class ModelState : IDisposable
{
    private readonly LayerState[] _layers;

    internal ModelState(IEnumerable<LayerState> layers) => _layers = [.. layers];

    /// <summary>The states of the blocks, in order.</summary>
    public IReadOnlyList<LayerState> Layers => _layers;

    /// <summary>The tokens seen so far by the row that has seen most.</summary>
    public long SeenTokens => _layers[0].SeenTokens;

    /// <summary>Cuts the graph: later passes send no gradient into earlier ones.</summary>
    public void Detach()
    {
        foreach (var layer in _layers)
            layer.Detach();
    }

    /// <summary>An independent copy, without gradients: for trying several continuations.</summary>
    public ModelState Clone() => new(_layers.Select(layer => layer.Clone()));

    /// <summary>Frees the tensors and leaves the state empty.</summary>
    public void Dispose()
    {
        foreach (var layer in _layers)
            layer.Dispose();
    }
}
