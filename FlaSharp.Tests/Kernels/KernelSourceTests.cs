using FlaSharp.Kernels.Runtime;
using Xunit;

namespace FlaSharp.Tests.Kernels;

/// <summary>The embedded sources of kernels, as text.</summary>
public sealed class KernelSourceTests
{
    private const int LongestLine = 130;

    [Fact]
    public void No_line_is_longer_than_the_limit()
    {
        var assemblies = new[] { typeof(KernelCatalog).Assembly, typeof(KernelSourceTests).Assembly };
        var sources = assemblies
            .SelectMany(assembly => assembly.GetManifestResourceNames().Select(name => (assembly, name)))
            .Where(source => source.name.EndsWith(".cu", StringComparison.Ordinal)
                || source.name.EndsWith(".cuh", StringComparison.Ordinal))
            .ToList();
        Assert.NotEmpty(sources);
        Assert.Empty(sources.SelectMany(source => LongLines(source.assembly.GetManifestResourceStream(source.name)!, source.name)));
    }

    private static List<string> LongLines(Stream stream, string name)
    {
        using var reader = new StreamReader(stream);
        return [.. reader.ReadToEnd().Split('\n')
            .Select((line, i) => (line, i))
            .Where(x => x.line.Length > LongestLine)
            .Select(x => $"{name}:{x.i + 1}")];
    }
}
