using FlaSharp;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>The input sets of a shape, on which every mode is timed.</summary>
internal sealed class GlaTimings : IDisposable
{
    // A rough upper bound of what forward and backward take beyond the inputs: output, gradients, states, copies in float32.
    private const int TensorsOfAPass = 32;

    private readonly GlaInputs[] _sets;
    private readonly Stopclock _clock;

    public GlaTimings(Stopclock clock, GlaShape shape, ScalarType dtype)
    {
        _clock = clock;
        int count = InputSets.Count(GlaInputs.Bytes(shape, dtype), clock.Target.CacheBytes);
        manual_seed(0);
        _sets = new GlaInputs[count];
        try
        {
            for (int i = 0; i < count; i++)
                _sets[i] = new GlaInputs(shape, dtype, clock.Target.Device);
        }
        catch
        {
            Dispose(); // the next shape may find room
            throw;
        }
    }

    /// <summary>A rough estimate, on the safe side, of the memory that timing such a shape takes.</summary>
    public static long EstimateBytes(GlaShape shape, ScalarType dtype, long cacheBytes)
    {
        long bytes = GlaInputs.Bytes(shape, dtype);
        return InputSets.Count(bytes, cacheBytes) * bytes + TensorsOfAPass * shape.Elements * dtype.ElementSize();
    }

    public Timing Forward(LinearAttentionMode mode) => _clock.Time(_sets.Length, set => _sets[set].Forward(mode));

    public Timing ForwardBackward(LinearAttentionMode mode) => _clock.Time(_sets.Length, set => _sets[set].ForwardBackward(mode));

    public void Dispose()
    {
        foreach (GlaInputs? set in _sets)
            set?.Dispose();
    }
}
