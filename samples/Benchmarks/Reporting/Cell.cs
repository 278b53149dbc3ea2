using System.Globalization;
using System.Text.Json.Nodes;
using Benchmarks.Measuring;

namespace Benchmarks.Reporting;

/// <summary>A cell as text and as JSON.</summary>
internal static class Cell
{
    /// <summary>A number with about four digits; a timing as its median and its 10th and 90th percentile.</summary>
    public static string Text(object? value) => value switch
    {
        null => "",
        Timing timing => $"{Text(timing.Median)} ({Text(timing.P10)}-{Text(timing.P90)})",
        double number => number.ToString(Format(Math.Abs(number)), CultureInfo.InvariantCulture),
        _ => Convert.ToString(value, CultureInfo.InvariantCulture)!,
    };

    public static JsonNode? Json(object? value) => value switch
    {
        null => null,
        Timing timing => new JsonObject
        {
            ["median"] = timing.Median,
            ["p10"] = timing.P10,
            ["p90"] = timing.P90,
            ["count"] = timing.Count,
        },
        double number => number,
        long number => number,
        int number => number,
        _ => Text(value),
    };

    private static string Format(double size) => size switch
    {
        >= 1000 => "F0",
        >= 100 => "F1",
        >= 10 => "F2",
        >= 1 => "F3",
        >= 0.01 or 0 => "F4",
        _ => "G2",
    };
}
