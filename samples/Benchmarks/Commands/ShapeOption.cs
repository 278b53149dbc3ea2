using System.CommandLine;
using Benchmarks.Measuring;
using Benchmarks.Reporting;
using static TorchSharp.torch;

namespace Benchmarks.Commands;

/// <summary>--shapes: all, or a list of B,T,H,D. --skip-large leaves some out.</summary>
internal sealed class ShapeOption(IReadOnlyList<GlaShape> all)
{
    public Option<string[]> Option { get; } = new("--shapes")
    {
        Description = "all, or shapes B,T,H,D with spaces between.",
        AllowMultipleArgumentsPerToken = true,
        DefaultValueFactory = _ => ["all"],
    };

    public Option<bool> SkipLarge { get; } = new("--skip-large")
    {
        Description = "Leave out shapes that need more memory than is free.",
    };

    /// <exception cref="LanguageModel.UserError">One is no shape.</exception>
    public IReadOnlyList<GlaShape> Read(ParseResult parsed) =>
        [.. parsed.GetValue(Option)!.SelectMany(text => text == "all" ? all : [GlaShape.Parse(text)])];

    /// <summary>Those that there is memory for, or all without --skip-large; the report gets a note of the others.</summary>
    public IReadOnlyList<GlaShape> Fitting(
        IReadOnlyList<GlaShape> shapes, ParseResult parsed, Report report, Target target, ScalarType dtype)
    {
        if (!parsed.GetValue(SkipLarge))
            return shapes;
        ILookup<bool, GlaShape> byFit = shapes.ToLookup(shape => Needed(shape) <= target.FreeBytes);
        foreach (GlaShape shape in byFit[false])
            report.Notes.Add(
                $"{shape} left out: it needs about {Needed(shape) >> 20} MiB, of which {target.FreeBytes >> 20} are free.");
        return [.. byFit[true]];

        long Needed(GlaShape shape) => GlaTimings.EstimateBytes(shape, dtype, target.CacheBytes);
    }
}
