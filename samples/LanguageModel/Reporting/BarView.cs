using System.Globalization;
using Spectre.Console;

namespace LanguageModel.Reporting;

/// <summary>A progress bar with the loss, the speed and the time left.</summary>
internal sealed class BarView(ProgressContext context) : IProgressView
{
    private readonly ProgressTask _task = context.AddTask("measuring the speed", new ProgressTaskSettings { MaxValue = 1 });

    public void Step(StepReport report)
    {
        if (report.Total is int total)
        {
            _task.MaxValue = total;
            _task.Value = report.Step;
        }

        _task.Description = string.Create(CultureInfo.InvariantCulture,
            $"step {report.Step} loss {report.Loss:F3} {report.TokensPerSecond:N0} tokens/s, {report.LeftText} left");
    }

    public void Note(string line) => AnsiConsole.WriteLine(line);
}
