namespace Benchmarks.Measuring;

/// <summary>A layer with its times.</summary>
internal sealed record Candidate(LayerChoice Choice, Timing Forward, Timing Both);
