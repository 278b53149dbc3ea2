using FlaSharp.Interop;
using FlaSharp.Kernels.Ssd;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The options of step sizes and rates in a call of <see cref="FlaOps.Ssd"/>.</summary>
/// <param name="Softplus">Whether softplus is taken, after the bias.</param>
/// <param name="Limit">Bounds, or null.</param>
/// <param name="IsLog">Whether the rates are given as log(-rate).</param>
internal readonly record struct SsdStepOptions(bool Softplus, (double min, double max)? Limit, bool IsLog = false)
{
    /// <param name="bias">float32 [H], or null. The caller keeps it alive, and the rates.</param>
    /// <param name="rates">float32 [H].</param>
    public SsdStepRule Rule(Tensor? bias, Tensor rates) => new(TensorPointer.Of(bias), TensorPointer.Of(rates), Softplus,
        (float)(Limit?.min ?? double.NegativeInfinity), (float)(Limit?.max ?? double.PositiveInfinity), IsLog);
}
