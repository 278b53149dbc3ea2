using FlaSharp.Interop;
using FlaSharp.Kernels.Ssd;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The step sizes' options in a call of <see cref="FlaOps.Ssd"/>.</summary>
/// <param name="Softplus">Whether softplus is taken, after the bias.</param>
/// <param name="Limit">Bounds, or null.</param>
internal readonly record struct SsdStepOptions(bool Softplus, (double min, double max)? Limit)
{
    /// <param name="bias">float32 [H], or null. The caller keeps it alive, and the rates.</param>
    /// <param name="rates">float32 [H].</param>
    public SsdStepRule Rule(Tensor? bias, Tensor rates) => new(TensorPointer.Of(bias), TensorPointer.Of(rates), Softplus,
        (float)(Limit?.min ?? double.NegativeInfinity), (float)(Limit?.max ?? double.PositiveInfinity));
}
