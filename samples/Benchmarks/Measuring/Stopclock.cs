using System.Diagnostics;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>Repeats and times what a user calls.</summary>
/// <param name="target">Where it runs.</param>
/// <param name="iterations">How often it is timed.</param>
/// <param name="seconds">For one timing: where they do not suffice for all iterations it makes fewer, but at least three.</param>
/// <param name="flush">Whether to write 256 MiB before each run, as Triton's do_bench does. The caches are empty then, and the
/// host works on the run while the device still writes, so that a short run does not show the host's time.</param>
internal sealed class Stopclock(Target target, int iterations, double seconds, bool flush) : IDisposable
{
    private const int FewestIterations = 3;
    private const double WarmUpSeconds = 0.1;
    private const long FlushBytes = 256 << 20;

    private readonly Tensor? _flushed =
        flush ? zeros(FlushBytes / sizeof(int), int32, target.Device).DetachFromDisposeScope() : null;

    public Target Target => target;

    /// <summary>Times a run. The tensors that it makes live until after its end.</summary>
    /// <param name="sets">The number of input sets, taken in turns.</param>
    /// <param name="run">Gets the number of the set.</param>
    /// <param name="cleanUp">The same, after each run and not timed.</param>
    public Timing Time(int sets, Action<int> run, Action<int>? cleanUp = null)
    {
        int count = Math.Clamp((int)(seconds / WarmUp(sets, run, cleanUp)), Math.Min(FewestIterations, iterations), iterations);
        using ILaps laps = target.NewLaps();
        for (int i = 0; i < count; i++)
        {
            using DisposeScope scope = NewDisposeScope();
            _flushed?.zero_();
            laps.Begin();
            run(i % sets);
            laps.End();
            cleanUp?.Invoke(i % sets);
        }

        return Timing.Of(laps.Milliseconds());
    }

    public void Dispose() => _flushed?.Dispose();

    /// <returns>The seconds of a run, after the first.</returns>
    private double WarmUp(int sets, Action<int> run, Action<int>? cleanUp)
    {
        double fastest = double.MaxValue;
        long start = 0;
        for (int i = 0; i < FewestIterations || Stopwatch.GetElapsedTime(start).TotalSeconds < WarmUpSeconds; i++)
        {
            using DisposeScope scope = NewDisposeScope();
            target.Synchronize();
            long begin = Stopwatch.GetTimestamp();
            run(i % sets);
            target.Synchronize();
            if (i == 0)
                start = Stopwatch.GetTimestamp(); // the first compiles
            else
                fastest = Math.Min(fastest, Stopwatch.GetElapsedTime(begin).TotalSeconds);
            cleanUp?.Invoke(i % sets);
        }

        return fastest;
    }
}
