using FlaSharp.Kernels.Runtime;

namespace Benchmarks.Measuring;

/// <summary>By events in the stream of the GPU's work: the host does not wait between intervals.</summary>
internal sealed class GpuLaps(GpuDevice gpu) : ILaps
{
    private readonly List<CudaEvent> _begins = [];
    private readonly List<CudaEvent> _ends = [];

    public void Begin() => Record(_begins);

    public void End() => Record(_ends);

    public double[] Milliseconds()
    {
        gpu.Synchronize();
        return [.. _ends.Zip(_begins, (end, begin) => (double)end.MillisecondsSince(begin))];
    }

    public void Dispose()
    {
        foreach (CudaEvent mark in _begins.Concat(_ends))
            mark.Dispose();
    }

    private void Record(List<CudaEvent> marks)
    {
        var mark = new CudaEvent(gpu);
        marks.Add(mark);
        mark.Record(LaunchStream.Current);
    }
}
