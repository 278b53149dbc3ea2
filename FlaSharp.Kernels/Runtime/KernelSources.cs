using System.Collections.Concurrent;
using System.Reflection;

namespace FlaSharp.Kernels.Runtime;

/// <summary>The kernels' sources and headers, by the names that an #include has.</summary>
/// <param name="read">Gives the text of a name, or null.</param>
internal sealed class KernelSources(Func<string, string?> read)
{
    private readonly ConcurrentDictionary<string, KernelSource> _sources = new();

    /// <summary>The resources of this assembly.</summary>
    public static KernelSources Embedded { get; } = Of(typeof(KernelSources).Assembly);

    /// <summary>The resources of several assemblies; the first that has a name wins.</summary>
    public static KernelSources Of(params Assembly[] assemblies) =>
        new(name => assemblies.Select(assembly => Read(assembly, name)).FirstOrDefault(text => text is not null));

    /// <summary>A source and the headers it includes.</summary>
    /// <exception cref="FileNotFoundException">It, or a header, is not there.</exception>
    /// <exception cref="InvalidDataException">It includes a standard or toolkit header.</exception>
    public KernelSource Resolve(string name) => _sources.GetOrAdd(name, static (name, sources) =>
    {
        var text = sources.TextOf(name, includedBy: null);
        var headers = new SortedDictionary<string, string>(StringComparer.Ordinal);
        sources.AddHeaders(name, text, headers);
        return new KernelSource(name, text, [.. headers]);
    }, this);

    private void AddHeaders(string includer, string text, SortedDictionary<string, string> headers)
    {
        foreach (var (name, isSystem) in Includes(text))
        {
            if (isSystem)
                throw new InvalidDataException($"{includer} includes <{name}>: NVRTC has no standard or toolkit headers.");
            if (headers.ContainsKey(name))
                continue;
            headers[name] = TextOf(name, includer);
            AddHeaders(name, headers[name], headers);
        }
    }

    private string TextOf(string name, string? includedBy) => read(name) ?? throw new FileNotFoundException(
        $"There is no kernel source {name}{(includedBy is null ? "" : $", included by {includedBy}")}.", name);

    private static string? Read(Assembly assembly, string name)
    {
        using var stream = assembly.GetManifestResourceStream(name);
        if (stream is null)
            return null;
        using var reader = new StreamReader(stream);
        return reader.ReadToEnd().ReplaceLineEndings("\n"); // the same key from a checkout with other line ends
    }

    // Not a regular expression, which would take longer at the first call than all sources together.
    private static IEnumerable<(string name, bool isSystem)> Includes(string text)
    {
        foreach (var line in text.Split('\n'))
        {
            if (After("#", line.TrimStart()) is { } directive
                && After("include", directive) is { Length: > 1 } include && include[0] is '"' or '<')
            {
                var end = include.IndexOf(include[0] == '<' ? '>' : '"', 1);
                if (end > 0)
                    yield return (include[1..end], include[0] == '<');
            }
        }
    }

    private static string? After(string start, string text) =>
        text.StartsWith(start, StringComparison.Ordinal) ? text[start.Length..].TrimStart() : null;
}
