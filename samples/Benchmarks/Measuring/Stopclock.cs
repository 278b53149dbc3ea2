using System.Diagnostics;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>Repeats and times what a user calls.</summary>
/// <param name="target">Where it runs.</param>
/// <param name="iterations">How often it is timed.</param>
/// <param name="seconds">For one timing: where they do not suffice for all iterations it makes fewer, but at least three, or a
/// single one if that alone takes longer.</param>
/// <param name="flush">Whether to write 256 MiB before each run, as Triton's do_bench does, but eight times. The caches are empty
/// then, and the host works on the run while the device still writes, so that a short run does not show the host's time.</param>
internal sealed class Stopclock(Target target, int iterations, double seconds, bool flush) : IDisposable
{
    private const int FewestIterations = 3;
    private const double WarmUpSeconds = 0.1;
    private const long FlushBytes = 256 << 20;
    private const int Flushes = 8; // half a millisecond: a step of autograd takes the host about as long

    private readonly Tensor? _flushed =
        flush ? zeros(FlushBytes / sizeof(int), int32, target.Device).DetachFromDisposeScope() : null;

    public Target Target => target;

    /// <summary>Times a run. The tensors that it makes live until after its end.</summary>
    /// <param name="sets">The number of input sets, taken in turns.</param>
    /// <param name="run">Gets the number of the set.</param>
    /// <param name="cleanUp">The same, after each run and not timed.</param>
    public Timing Time(int sets, Action<int> run, Action<int>? cleanUp = null)
    {
        // The first run compiles: how long it takes proves nothing yet.
        if (RunOnce(0, run, cleanUp) > seconds && Repeat(1, sets, run, cleanUp) is { } single
            && single.Median > 1000 * seconds)
            return single;
        int count = Math.Clamp((int)(seconds / WarmUp(sets, run, cleanUp)), Math.Min(FewestIterations, iterations), iterations);
        return Repeat(count, sets, run, cleanUp);
    }

    public void Dispose() => _flushed?.Dispose();

    private Timing Repeat(int count, int sets, Action<int> run, Action<int>? cleanUp)
    {
        using ILaps laps = target.NewLaps();
        for (int i = 0; i < count; i++)
        {
            using DisposeScope scope = NewDisposeScope();
            for (int j = 0; j < Flushes; j++)
                _flushed?.zero_();
            laps.Begin();
            run(i % sets);
            laps.End();
            cleanUp?.Invoke(i % sets);
        }

        return Timing.Of(laps.Milliseconds());
    }

    /// <returns>The seconds of the fastest run.</returns>
    private double WarmUp(int sets, Action<int> run, Action<int>? cleanUp)
    {
        double fastest = double.MaxValue;
        long start = Stopwatch.GetTimestamp();
        for (int i = 1; i < FewestIterations || Stopwatch.GetElapsedTime(start).TotalSeconds < WarmUpSeconds; i++)
            fastest = Math.Min(fastest, RunOnce(i % sets, run, cleanUp));
        return fastest;
    }

    /// <returns>Its seconds.</returns>
    private double RunOnce(int set, Action<int> run, Action<int>? cleanUp)
    {
        using DisposeScope scope = NewDisposeScope();
        target.Synchronize();
        long begin = Stopwatch.GetTimestamp();
        run(set);
        target.Synchronize();
        double seconds = Stopwatch.GetElapsedTime(begin).TotalSeconds;
        cleanUp?.Invoke(set);
        return seconds;
    }
}
