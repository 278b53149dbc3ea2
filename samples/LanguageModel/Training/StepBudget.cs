using System.Diagnostics;

namespace LanguageModel.Training;

/// <summary>
/// Turns minutes into a number of steps. The first steps are measured, then the number is fixed: the learning rate follows it,
/// and a resumed run must not choose another.
/// </summary>
internal sealed class StepBudget(double minutes)
{
    /// <summary>The first steps compile code and fill caches: not representative.</summary>
    private const int Ignored = 4;

    private const int Measured = 12;

    /// <summary>The rest is for validation, checkpoints and slower moments.</summary>
    private const double TrainingShare = 0.92;

    private readonly List<double> _seconds = [];

    /// <summary>Steps before the number is known.</summary>
    public const int CalibrationSteps = Ignored + Measured;

    /// <param name="seconds">Duration of the step that just ended.</param>
    /// <param name="elapsed">Seconds since training began.</param>
    /// <param name="step">Steps done.</param>
    /// <returns>The number of steps of the whole run, once enough is known.</returns>
    public int? Add(double seconds, double elapsed, int step)
    {
        Debug.Assert(seconds > 0, "A step takes time.");
        _seconds.Add(seconds);
        if (_seconds.Count < CalibrationSteps && elapsed < minutes * 60 * 0.5)
            return null;

        double[] measured = [.. _seconds.Skip(Math.Min(Ignored, _seconds.Count - 1)).Order()];
        double median = measured[measured.Length / 2];
        double left = Math.Max(0, minutes * 60 - elapsed) * TrainingShare;
        return step + (int)Math.Max(0, left / median);
    }
}
