namespace Benchmarks.Reporting;

/// <summary>A column: its name in the JSON and its heading.</summary>
internal sealed record Column(string Key, string Title);
