using FlaSharp.Models;
using Microsoft.CodeAnalysis.Scripting;
using TorchSharp;

namespace FlaSharp.Tests.Samples;

internal static class Scripting
{
    /// <summary>What a program with implicit usings and the samples' packages sees: the assemblies of this process.</summary>
    public static ScriptOptions Options { get; } = ScriptOptions.Default
        .WithImports("System", "System.Collections.Generic", "System.IO", "System.Linq", "System.Threading",
            "System.Threading.Tasks")
        .WithReferences(typeof(object).Assembly, typeof(Enumerable).Assembly, typeof(Console).Assembly, typeof(CausalLM).Assembly,
            typeof(torch).Assembly, typeof(ScottPlot.Plot).Assembly, typeof(SkiaSharp.SKPaint).Assembly);
}
