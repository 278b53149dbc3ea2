namespace LanguageModel.Training;

/// <summary>
/// Keeps small gradients of fp16 above zero: the loss is multiplied by a scale that halves after an overflow and doubles after a
/// long time without one (Micikevicius et al. 2018, "Mixed Precision Training"). Other types have the range of fp32: scale 1.
/// </summary>
internal sealed class LossScale
{
    private const int StepsToDouble = 500;

    /// <summary>Below this, overflow is not a matter of scale.</summary>
    private const double Smallest = 1.0 / 1024;

    private readonly bool _dynamic;

    public LossScale(Precision precision)
    {
        _dynamic = precision == Precision.Fp16;
        Value = _dynamic ? 65536 : 1;
    }

    public double Value { get; private set; }

    /// <summary>Steps since the scale last changed.</summary>
    public int GoodSteps { get; private set; }

    public void Restore(double value, int goodSteps) => (Value, GoodSteps) = (value, goodSteps);

    /// <summary>Takes note of a step. Returns whether the step is to be applied.</summary>
    /// <param name="gradientNorm">Norm of the unscaled gradient; not finite after an overflow.</param>
    /// <exception cref="UserError">The gradient is not finite, and no smaller scale will help.</exception>
    public bool Update(double gradientNorm)
    {
        if (double.IsFinite(gradientNorm))
        {
            if (_dynamic && ++GoodSteps >= StepsToDouble)
                (Value, GoodSteps) = (Value * 2, 0);
            return true;
        }

        if (!_dynamic || Value <= Smallest)
            throw new UserError("The gradient is not finite: training has diverged. Try a lower --lr or a longer --warmup.");
        (Value, GoodSteps) = (Value / 2, 0);
        return false;
    }
}
