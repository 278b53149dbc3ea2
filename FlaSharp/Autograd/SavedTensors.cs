using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>
/// The tensors that a forward pass keeps for its backward pass: aliases without autograd history, outside every dispose scope.
/// And where the gradients of its inputs go.
/// </summary>
internal sealed class SavedTensors : IDisposable
{
    private readonly GradientPlace?[] _places;
    private readonly List<Tensor> _own = [];
    private Tensor?[] _tensors = [];

    /// <param name="inputs">Of the operation.</param>
    public SavedTensors(Tensor?[] inputs)
    {
        NeedsGrad = Array.ConvertAll(inputs, input => input is { requires_grad: true });
        _places = Array.ConvertAll(inputs, WholeGradient.PlaceOf);
    }

    /// <summary>For each input of the operation, whether its gradient is wanted.</summary>
    public bool[] NeedsGrad { get; }

    public bool IsDisposed { get; private set; }

    /// <summary>Keeps the tensors in this order, absent ones too; <see cref="this[int]"/> gives them back.</summary>
    public void Save(params Tensor?[] tensors)
    {
        if (_tensors.Length > 0)
            throw new InvalidOperationException("An operation saves its tensors in one call.");
        _tensors = Array.ConvertAll(tensors, tensor => tensor?.detach().DetachFromDisposeScope());
    }

    public Tensor? this[int index] => _tensors[index];

    /// <summary>
    /// Uninitialised memory for the gradient of an input: if that is a part of a tensor, the place in the whole's gradient.
    /// </summary>
    /// <param name="input">The number of the input.</param>
    /// <param name="like">Gives the shape and the device, and the dtype, which is that of the input.</param>
    public Tensor NewGradient(int input, Tensor like) =>
        _places[input]?.Take() is { } place ? Own(place) : Scratch.Dense(like, like.dtype);

    /// <summary>A gradient in the dtype of its input, and at its place if the input is a part of a tensor.</summary>
    /// <param name="input">The number of the input.</param>
    /// <param name="gradient">In any dtype.</param>
    /// <param name="dtype">Of the input.</param>
    public Tensor Gradient(int input, Tensor gradient, ScalarType dtype) =>
        _places[input]?.Take() is { } place ? Own(place.copy_(gradient)) : gradient.InDtype(dtype);

    /// <summary>Notes that a gradient may lie amid others: no leaf gets it as it is, or they are parts of it.</summary>
    public Tensor Own(Tensor gradient)
    {
        _own.Add(gradient);
        return gradient;
    }

    /// <summary>Whether <see cref="Own"/> was told of it.</summary>
    public bool Owns(Tensor gradient) => _own.Exists(own => ReferenceEquals(own, gradient));

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
