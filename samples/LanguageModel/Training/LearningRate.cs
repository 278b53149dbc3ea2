namespace LanguageModel.Training;

/// <summary>Linear warm-up, then half a cosine down to a tenth of the peak.</summary>
internal static class LearningRate
{
    private const double FloorShare = 0.1;

    /// <param name="step">From 0.</param>
    /// <param name="peak">The highest rate.</param>
    /// <param name="warmup">Steps of the warm-up; at most half the run.</param>
    /// <param name="total">Steps of the run; null while that is not known, which is only so during the warm-up.</param>
    public static double At(int step, double peak, int warmup, int? total)
    {
        warmup = Math.Min(warmup, total / 2 ?? warmup);
        if (step < warmup)
            return peak * (step + 1) / warmup;
        if (total is not int end || end <= warmup)
            return peak;

        double progress = Math.Min(1.0, (double)(step - warmup) / (end - warmup));
        return peak * (FloorShare + (1 - FloorShare) * 0.5 * (1 + Math.Cos(Math.PI * progress)));
    }
}
