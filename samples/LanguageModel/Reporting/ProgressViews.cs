using Spectre.Console;

namespace LanguageModel.Reporting;

internal static class ProgressViews
{
    /// <summary>Runs a training with a live bar on a terminal, and with plain lines where the output goes elsewhere.</summary>
    public static void Run(Action<IProgressView> training)
    {
        if (Console.IsOutputRedirected || !AnsiConsole.Profile.Capabilities.Interactive)
        {
            training(new PlainView(Console.Out));
            return;
        }

        AnsiConsole.Progress()
            .HideCompleted(false)
            .Columns(new TaskDescriptionColumn { Alignment = Justify.Left }, new ProgressBarColumn(), new PercentageColumn())
            .Start(context => training(new BarView(context)));
    }
}
