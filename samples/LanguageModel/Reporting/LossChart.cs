using ScottPlot;

namespace LanguageModel.Reporting;

/// <summary>The loss curve as a picture.</summary>
internal static class LossChart
{
    public const string FileName = "loss.png";

    public static void Save(string run, double bytesPerToken)
    {
        (List<(int step, double loss)> training, List<(int step, double loss)> validation) = MetricsLog.Read(run);
        using var plot = new Plot();
        plot.Title("Loss");
        plot.XLabel("step");
        plot.YLabel("nats per byte");
        Add(plot, training, 1 / bytesPerToken, "training", width: 1, marker: 0);
        Add(plot, validation, 1, "validation", width: 2, marker: 7);
        plot.ShowLegend(Alignment.UpperRight);
        plot.SavePng(Path.Combine(run, FileName), 900, 540);
    }

    private static void Add(
        Plot plot, List<(int step, double loss)> points, double scale, string name, float width, float marker)
    {
        if (points.Count == 0)
            return;
        var line = plot.Add.Scatter(
            points.ConvertAll(point => (double)point.step), points.ConvertAll(point => point.loss * scale));
        (line.LegendText, line.LineWidth, line.MarkerSize) = (name, width, marker);
    }
}
