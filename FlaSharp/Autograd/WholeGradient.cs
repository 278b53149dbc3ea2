using System.Runtime.CompilerServices;
using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>
/// The gradient of a tensor that was split, in which the operations that take its parts write theirs at the parts' places: then
/// nothing is left to put together.
/// </summary>
internal sealed class WholeGradient
{
    private static readonly ConditionalWeakTable<Tensor, GradientPlace> s_places = [];

    private readonly TensorParts _parts;
    private readonly ScalarType _dtype;
    private readonly Device _device;
    private readonly bool[] _isTaken;
    private Tensor? _whole;

    private WholeGradient(Tensor whole, TensorParts parts)
    {
        (_parts, _dtype, _device) = (parts, whole.dtype, whole.device);
        _isTaken = new bool[parts.Count];
    }

    /// <param name="whole">What was split.</param>
    /// <param name="parts">How.</param>
    /// <param name="tensors">The parts, each the very object that operations will be given.</param>
    public static WholeGradient Of(Tensor whole, TensorParts parts, ReadOnlySpan<Tensor> tensors)
    {
        var gradient = new WholeGradient(whole, parts);
        for (var i = 0; i < tensors.Length; i++)
            s_places.Add(tensors[i], new GradientPlace(gradient, i));
        return gradient;
    }

    /// <summary>Where the gradient of a tensor belongs, if that is a part; null otherwise.</summary>
    public static GradientPlace? PlaceOf(Tensor? tensor) =>
        tensor is not null && s_places.TryGetValue(tensor, out var place) ? place : null;

    /// <summary>Uninitialised memory for the gradient of a part; null if somebody else has it.</summary>
    public Tensor? Take(int part)
    {
        if (_isTaken[part])
            return null;
        _isTaken[part] = true;
        return _parts.Cut(Whole(), part);
    }

    /// <summary>The gradient of the whole, given those of the parts: copies what does not lie at its place.</summary>
    public Tensor Complete(ReadOnlySpan<Tensor?> gradients)
    {
        var whole = Whole();
        _whole = null;
        for (var i = 0; i < gradients.Length; i++)
        {
            using var place = _parts.Cut(whole, i);
            if (gradients[i] is not { } gradient)
                place.zero_();
            else if (!IsSame(gradient, place))
                place.copy_(gradient);
        }
        return whole;
    }

    private Tensor Whole() => _whole ??= Scratch.Empty(_parts.WholeSizes, _dtype, _device).DetachFromDisposeScope();

    private static bool IsSame(Tensor a, Tensor b)
    {
        var isSame = TensorPointer.Of(a) == TensorPointer.Of(b) && a.dtype == b.dtype;
        for (var d = 0; isSame && d < b.Rank(); d++)
            isSame = a.Stride(d) == b.Stride(d);
        return isSame;
    }
}
