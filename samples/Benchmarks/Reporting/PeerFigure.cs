namespace Benchmarks.Reporting;

/// <summary>What bench_peers.py measured of another library; null where it did not.</summary>
internal sealed record PeerFigure(double? ForwardMs, double? BothMs, double? FirstSeconds, double? PeakExtraMiB);
