using FlaSharp.Autograd;
using FlaSharp.Interop;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// The parts of a tensor [..., D]: views. An operation of this library that is given one writes its gradient where it belongs in
/// the gradient of the whole.
/// </summary>
internal sealed class SplitFunction : FlaFunction
{
    private readonly TensorParts _parts;
    private WholeGradient? _gradient;

    private SplitFunction(TensorParts parts) => _parts = parts;

    /// <param name="whole">[..., D].</param>
    /// <param name="shapes">What each part has in place of D; the products of the sizes add up to D.</param>
    /// <returns>The parts, in order.</returns>
    public static Tensor[] Split(Tensor whole, params long[][] shapes)
    {
        var cut = new TensorParts(whole, shapes);
        if (!is_grad_enabled() || !whole.requires_grad)
            return cut.All(whole);
        var function = new SplitFunction(cut);
        var parts = Array.ConvertAll(function.Run(whole), part => part!);
        function._gradient = WholeGradient.Of(whole, cut, parts);
        return parts;
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved) => _parts.All(inputs[0]!.detach());

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs) =>
        [saved.Own(_gradient!.Complete(gradOutputs))];
}
