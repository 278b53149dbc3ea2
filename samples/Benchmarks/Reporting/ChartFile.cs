using System.Globalization;
using ScottPlot;

namespace Benchmarks.Reporting;

/// <summary>A chart as a PNG.</summary>
internal static class ChartFile
{
    private const int Width = 1400;
    private const int Height = 620;
    private const double GroupShare = 0.85; // the rest is the gap between groups

    public static byte[] Png(Chart chart)
    {
        using var plot = new Plot();
        plot.Title(chart.Title);
        plot.YLabel(chart.Unit);
        double bottom = Math.Floor(Math.Log10(chart.Values.Min()));
        double top = Math.Max(bottom + 1, Math.Ceiling(Math.Log10(chart.Values.Max())));
        double width = GroupShare / chart.Series.Count;
        var few = new ScottPlot.Palettes.Category10();
        IPalette palette = chart.Series.Count <= few.Colors.Length ? few : new ScottPlot.Palettes.Category20();
        for (int i = 0; i < chart.Series.Count; i++)
        {
            string series = chart.Series[i];
            double offset = (i - (chart.Series.Count - 1) / 2.0) * width;
            Color color = palette.GetColor(i);
            Bar[] bars =
            [
                .. chart.Groups.Index()
                    .Select(group => (group.Index, Value: chart.Value(group.Item, series)))
                    .Where(bar => bar.Value is not null)
                    .Select(bar => new Bar
                    {
                        Position = bar.Index + offset,
                        Value = Math.Log10(bar.Value!.Value),
                        ValueBase = bottom,
                        Size = width,
                        FillColor = color,
                        LineWidth = 0,
                    }),
            ];
            plot.Add.Bars(bars).LegendText = series;
        }

        plot.Axes.Bottom.SetTicks([.. Enumerable.Range(0, chart.Groups.Count).Select(i => (double)i)], [.. chart.Groups]);
        double[] decades = [.. Enumerable.Range((int)bottom, (int)(top - bottom) + 1).Select(i => (double)i)];
        plot.Axes.Left.SetTicks(decades, [.. decades.Select(i => Math.Pow(10, i).ToString("G4", CultureInfo.InvariantCulture))]);
        plot.Axes.SetLimits(-0.6, chart.Groups.Count - 0.4, bottom, top);
        plot.ShowLegend(Edge.Right);
        return plot.GetImageBytes(Width, Height, ImageFormat.Png);
    }
}
