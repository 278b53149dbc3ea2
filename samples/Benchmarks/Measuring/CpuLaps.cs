using System.Diagnostics;

namespace Benchmarks.Measuring;

/// <summary>On the CPU, where a call returns with its result.</summary>
internal sealed class CpuLaps : ILaps
{
    private readonly List<double> _milliseconds = [];
    private long _start;

    public void Begin() => _start = Stopwatch.GetTimestamp();

    public void End() => _milliseconds.Add(Stopwatch.GetElapsedTime(_start).TotalMilliseconds);

    public double[] Milliseconds() => [.. _milliseconds];

    public void Dispose()
    {
    }
}
