using System.CommandLine;
using Benchmarks.Measuring;

namespace Benchmarks.Commands;

/// <summary>--shapes: all, or a list of B,T,H,D.</summary>
internal sealed class ShapeOption(IReadOnlyList<GlaShape> all)
{
    public Option<string[]> Option { get; } = new("--shapes")
    {
        Description = "all, or shapes B,T,H,D with spaces between.",
        AllowMultipleArgumentsPerToken = true,
        DefaultValueFactory = _ => ["all"],
    };

    /// <exception cref="LanguageModel.UserError">One is no shape.</exception>
    public IReadOnlyList<GlaShape> Read(ParseResult parsed) =>
        [.. parsed.GetValue(Option)!.SelectMany(text => text == "all" ? all : [GlaShape.Parse(text)])];
}
