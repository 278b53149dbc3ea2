using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Gpu.Blocks;

/// <summary>Log-decays whose sums to base 2 are whole numbers, so that all that is scaled by them is exact.</summary>
internal static class WholeDecays
{
    private const float Log2E = 1.4426950408889634f;

    /// <summary>0, and in one of <paramref name="period"/> places -1, -2 or -4: log2 decays [rows, keys] in float64.</summary>
    public static Tensor Of(int rows, int keys, int period)
    {
        var values = new double[rows, keys];
        for (var i = 0; i < rows; i++)
            for (var k = 0; k < keys; k++)
                values[i, k] = ((3 * i) + k) % period == 0 ? -(1 << ((i + k) % 3)) : 0;
        return from_array(values);
    }

    /// <summary>The natural log-decays, in float32, that become just these when a kernel multiplies by log2(e).</summary>
    public static Tensor Natural(Tensor decays)
    {
        var natural = decays.to(float32);
        foreach (var n in new[] { 1, 2, 4 })
        {
            var guess = (float)(n * Math.Log(2));
            var value = new[] { guess, MathF.BitIncrement(guess), MathF.BitDecrement(guess) }.First(x => x * Log2E == n);
            natural = natural.masked_fill(decays == -n, -value);
        }
        return natural;
    }
}
