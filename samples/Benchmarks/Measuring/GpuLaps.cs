using FlaSharp.Kernels.Runtime;

namespace Benchmarks.Measuring;

/// <summary>By events in the stream of the GPU's work: the host does not wait between intervals.</summary>
internal sealed class GpuLaps(GpuDevice gpu) : ILaps
{
    private readonly List<(CudaEvent begin, CudaEvent end)> _laps = [];

    public void Begin()
    {
        _laps.Add((new CudaEvent(gpu), new CudaEvent(gpu))); // both now: making one takes host time
        _laps[^1].begin.Record(LaunchStream.Current);
    }

    public void End() => _laps[^1].end.Record(LaunchStream.Current);

    public double[] Milliseconds()
    {
        gpu.Synchronize();
        return [.. _laps.Select(lap => (double)lap.end.MillisecondsSince(lap.begin))];
    }

    public void Dispose()
    {
        foreach ((CudaEvent begin, CudaEvent end) in _laps)
        {
            begin.Dispose();
            end.Dispose();
        }
    }
}
