using System.Diagnostics;
using System.Globalization;

namespace LanguageModel.Reporting;

/// <summary>A line every few seconds, for files and pipes.</summary>
internal sealed class PlainView(TextWriter output) : IProgressView
{
    private static readonly TimeSpan s_interval = TimeSpan.FromSeconds(5);

    private long _last;

    public void Step(StepReport report)
    {
        bool isFirst = _last == 0;
        if (!isFirst && report.Step != report.Total && Stopwatch.GetElapsedTime(_last) < s_interval)
            return;

        _last = Stopwatch.GetTimestamp();
        output.WriteLine(string.Create(CultureInfo.InvariantCulture,
            $"step {report.Step}/{report.Total?.ToString(CultureInfo.InvariantCulture) ?? "?"} loss {report.Loss:F4} "
            + $"lr {report.LearningRate:G3} {report.TokensPerSecond:N0} tokens/s, {report.LeftText} left"));
    }

    public void Note(string line) => output.WriteLine(line);
}
