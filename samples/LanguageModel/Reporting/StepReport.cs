namespace LanguageModel.Reporting;

/// <summary>What one optimizer step did.</summary>
/// <param name="Step">Steps done, this one included.</param>
/// <param name="Total">Steps of the run; null while the speed is being measured.</param>
/// <param name="Loss">Nats per token.</param>
/// <param name="LearningRate">Of this step.</param>
/// <param name="GradientNorm">Before clipping.</param>
/// <param name="TokensPerSecond">Averaged over the last steps.</param>
/// <param name="Left">Time left; null while the speed is being measured.</param>
internal readonly record struct StepReport(
    int Step, int? Total, double Loss, double LearningRate, double GradientNorm, double TokensPerSecond, TimeSpan? Left)
{
    /// <summary>Minutes and seconds left, or a question mark.</summary>
    public string LeftText => Left is TimeSpan left ? $"{(int)left.TotalMinutes}:{left.Seconds:00}" : "?";
}
