using System.Collections.Concurrent;
using System.Runtime.CompilerServices;

namespace FlaSharp.Kernels.Rotary;

/// <summary>fla::Rotary: how far each pair turns. The default turns nothing.</summary>
internal struct RotaryTurns
{
    /// <summary>Features that can turn.</summary>
    public const int MaxDim = 256;

    private const double Full = 18446744073709551616.0; // 2^64, a full turn

    private static readonly ConcurrentDictionary<(double, int, bool), RotaryTurns> s_known = new();

    private Turns _turns;

    public int Pairs { get; private set; }

    /// <summary>1, or -1 to turn back.</summary>
    public float Direction { get; private set; }

    /// <param name="theta">The base of the frequencies.</param>
    /// <param name="rotaryDim">Even, at most <see cref="MaxDim"/>.</param>
    /// <param name="inverse">Turns back: the transpose of the rotation, hence its gradient.</param>
    public static RotaryTurns Of(double theta, int rotaryDim, bool inverse = false) =>
        s_known.GetOrAdd((theta, rotaryDim, inverse), static key => Compute(key.Item1, key.Item2, key.Item3));

    private static RotaryTurns Compute(double theta, int rotaryDim, bool inverse)
    {
        var result = new RotaryTurns { Pairs = rotaryDim / 2, Direction = inverse ? -1 : 1 };
        for (var i = 0; i < result.Pairs; i++)
        {
            var turns = Math.Pow(theta, -2.0 * i / rotaryDim) / Math.Tau;
            result._turns[i] = (ulong)((turns - Math.Floor(turns)) * Full);
        }
        return result;
    }

    [InlineArray(MaxDim / 2)]
    private struct Turns
    {
        private ulong _first;
    }
}
