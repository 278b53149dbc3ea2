namespace FlaSharp.Kernels.Ssd;

/// <summary>How step sizes come from their inputs, and the rates that make log-decays of them.</summary>
/// <param name="Bias">float32 [H], or 0.</param>
/// <param name="Rates">float32 [H]: the rates, or log(-rates).</param>
/// <param name="Softplus">Whether softplus is taken, after the bias.</param>
/// <param name="Low">The lower bound, -inf for none.</param>
/// <param name="High">The upper bound, inf for none.</param>
/// <param name="IsLog">Whether the rates are logarithms.</param>
internal readonly record struct SsdStepRule(nint Bias, nint Rates, bool Softplus, float Low, float High, bool IsLog)
{
    public SsdParameters.StepRule Parameters => new()
    {
        Bias = Bias,
        Rates = Rates,
        Low = Low,
        High = High,
        Softplus = Softplus ? 1 : 0,
        IsLog = IsLog ? 1 : 0,
    };
}
