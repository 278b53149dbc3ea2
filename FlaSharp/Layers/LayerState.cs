using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// What one layer remembers of the rows of a batch: recurrent state (float32), the last inputs of its convolutions, or keys and
/// values. Made empty, filled and moved on by each forward pass that it is given to; it belongs to that layer from then on.
/// </summary>
/// <remarks>
/// Gradients flow through a state from one pass to the next (truncate with <see cref="Detach"/>); generate under
/// <c>torch.no_grad()</c>. The tensors live outside dispose scopes, until <see cref="Dispose"/>.
/// </remarks>
public sealed class LayerState : IDisposable
{
    private readonly Dictionary<string, Tensor> _tensors = [];
    private string? _layer;
    private long[] _lengths = [];

    /// <summary>Whether no pass has used it yet.</summary>
    public bool IsEmpty => _layer is null;

    /// <summary>The tokens seen so far, per row.</summary>
    public IReadOnlyList<long> Lengths => _lengths;

    /// <summary>The tokens seen so far by the row that has seen most.</summary>
    public long SeenTokens => _lengths.Length == 0 ? 0 : _lengths.Max();

    internal KeyValueCache? KeyValues { get; set; }

    /// <summary>Cuts the graph: later passes send no gradient into earlier ones.</summary>
    public void Detach()
    {
        foreach (var name in _tensors.Keys.ToArray())
            this[name] = _tensors[name].detach();
        KeyValues?.Detach();
    }

    /// <summary>An independent copy, without gradients: for trying several continuations.</summary>
    public LayerState Clone()
    {
        using var scope = NewDisposeScope();
        var copy = new LayerState { _layer = _layer, _lengths = [.. _lengths], KeyValues = KeyValues?.Clone() };
        foreach (var (name, tensor) in _tensors)
            copy[name] = tensor.detach().clone();
        return copy;
    }

    /// <summary>Frees the tensors and leaves the state empty.</summary>
    public void Dispose()
    {
        foreach (var tensor in _tensors.Values)
            tensor.Dispose();
        _tensors.Clear();
        KeyValues?.Dispose();
        KeyValues = null;
        _layer = null;
        _lengths = [];
    }

    /// <summary>A tensor of the layer's choice, null before the first pass. What is set is owned by the state.</summary>
    internal Tensor? this[string name]
    {
        get => _tensors.GetValueOrDefault(name);
        set
        {
            if (ReferenceEquals(value, this[name])) // it was updated in place
                return;
            if (_tensors.Remove(name, out var old))
                old.Dispose();
            if (value is not null)
                _tensors.Add(name, value.DetachFromDisposeScope());
        }
    }

    /// <summary>Whether a pass may write over such a tensor of a state, since no backward pass needs it.</summary>
    internal static bool CanUpdate(Tensor? past) =>
        !is_grad_enabled() && past is { requires_grad: false } && past.is_contiguous();

    /// <summary>Tokens that row b has seen.</summary>
    internal long Length(int row) => IsEmpty ? 0 : _lengths[row];

    /// <param name="layer">The kind of layer that is about to use the state.</param>
    /// <param name="rows">Its rows or packed sequences.</param>
    /// <param name="name">What the caller names the state.</param>
    internal void CheckFits(string layer, int rows, string name)
    {
        if (IsEmpty)
            return;
        if (_layer != layer)
            throw new ArgumentException(
                $"The state is that of a {_layer} layer, not of {layer}. Give each layer a state of its own.", name);
        if (_lengths.Length != rows)
            throw new ArgumentException(
                $"The state holds {_lengths.Length} rows, but the input has {rows} (rows of the batch, or packed sequences). " +
                "Go on with the same rows, or start with a new LayerState.", name);
    }

    internal void Advance(string layer, Sequences sequences)
    {
        if (IsEmpty)
            (_layer, _lengths) = (layer, new long[sequences.Count]);
        for (var s = 0; s < sequences.Count; s++)
            _lengths[s] += sequences.Length(s);
    }
}
