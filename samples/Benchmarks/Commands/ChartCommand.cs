using System.CommandLine;
using System.Text.Json;
using System.Text.Json.Nodes;
using Benchmarks.Reporting;
using LanguageModel;

namespace Benchmarks.Commands;

/// <summary>chart: draws columns of a report that was written as JSON, perhaps on another machine.</summary>
internal static class ChartCommand
{
    public static Command Create()
    {
        var json = new Argument<string>("json") { Description = "What --json wrote." };
        var png = new Argument<string>("png") { Description = "The file to write." };
        var groups = new Option<string>("--groups") { Description = "The column that groups the bars.", Required = true };
        var bars = new Option<string[]>("--bars")
        {
            Description = "Columns NAME:VALUE, of the bars' names and values; several with spaces between.",
            AllowMultipleArgumentsPerToken = true,
            Required = true,
        };
        var unit = new Option<string>("--unit") { Description = "Of the values.", DefaultValueFactory = _ => "ms" };
        var command = new Command("chart", "Draws columns of a report.") { json, png, groups, bars, unit };
        command.SetAction(parsed =>
        {
            string file = parsed.GetValue(json)!;
            Chart chart = Read(file, parsed.GetValue(groups)!, parsed.GetValue(bars)!, parsed.GetValue(unit)!);
            if (chart.Values.Count == 0)
                throw new UserError($"{file} has no positive values in these columns.");
            ReportOutput.Write(parsed.GetValue(png)!, ChartFile.Png(chart));
            return 0;
        });
        return command;
    }

    private static Chart Read(string file, string groups, string[] bars, string unit)
    {
        try
        {
            JsonNode report = JsonNode.Parse(File.ReadAllBytes(file))!;
            var chart = new Chart("", (string?)report["title"] ?? "", unit);
            foreach (JsonNode? row in report["rows"]!.AsArray())
                foreach (string[] columns in bars.Select(bar => bar.Split(':')))
                    if (columns is [var name, var value] && Text(row![groups]) is { } group && Text(row[name]) is { } bar)
                        chart.Add(group, bar, Number(row[value]));
            return chart;
        }
        catch (Exception e) when (e is JsonException or InvalidOperationException or NullReferenceException)
        {
            throw new UserError($"{file} is no report of this program: {e.Message}");
        }
    }

    private static string? Text(JsonNode? cell) => cell?.ToString();

    private static double? Number(JsonNode? cell) => (double?)(cell is JsonObject timing ? timing["median"] : cell);
}
