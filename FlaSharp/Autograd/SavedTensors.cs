using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>
/// The tensors that a forward pass keeps for its backward pass: aliases without autograd history, outside every dispose scope.
/// </summary>
internal sealed class SavedTensors(bool[] needsGrad) : IDisposable
{
    private Tensor?[] _tensors = [];

    /// <summary>For each input of the operation, whether its gradient is wanted.</summary>
    public bool[] NeedsGrad => needsGrad;

    public bool IsDisposed { get; private set; }

    /// <summary>Keeps the tensors in this order, absent ones too; <see cref="this[int]"/> gives them back.</summary>
    public void Save(params Tensor?[] tensors)
    {
        if (_tensors.Length > 0)
            throw new InvalidOperationException("An operation saves its tensors in one call.");
        _tensors = Array.ConvertAll(tensors, tensor => tensor?.detach().DetachFromDisposeScope());
    }

    public Tensor? this[int index] => _tensors[index];

    /// <summary>Adds the memory of each.</summary>
    public void AddRanges(List<MemoryRange> ranges)
    {
        foreach (var tensor in _tensors)
            if (tensor is not null)
                ranges.Add(MemoryRange.Of(tensor));
    }

    public void Dispose()
    {
        foreach (var tensor in _tensors)
            tensor?.Dispose();
        _tensors = [];
        IsDisposed = true;
    }
}
