namespace FlaSharp.Tests.TestSupport;

/// <summary>
/// The sizes on which an operation with a state is compared with its float64 reference. Every pair of a key and a value size is
/// there, and every pair of a number of tokens or of heads with any of them, except that long sequences have small states: the
/// reference goes token by token.
/// </summary>
internal static class Grid
{
    private const int LargeState = 64 * 64; // from more than this on, one head has to do

    private static readonly int[] s_sizes = [1, 7, 8, 16, 32, 60, 64, 100, 128, 256];
    private static readonly int[] s_smallSizes = [1, 7, 8, 16];
    private static readonly int[] s_times = [1, 2, 15, 16, 17, 63, 64, 65];
    private static readonly int[] s_longTimes = [500, 1024, 2048];
    private static readonly int[] s_heads = [1, 3, 8];

    public static IEnumerable<(int time, int heads, int keySize, int valueSize)> Cases()
    {
        for (var k = 0; k < s_sizes.Length; k++)
            for (var v = 0; v < s_sizes.Length; v++)
            {
                var heads = s_sizes[k] * s_sizes[v] > LargeState ? 1 : s_heads[(k + v) % s_heads.Length];
                yield return (s_times[(k + 3 * v) % s_times.Length], heads, s_sizes[k], s_sizes[v]);
            }
        for (var t = 0; t < s_longTimes.Length; t++)
            for (var h = 0; h < s_heads.Length; h++)
                yield return (s_longTimes[t], s_heads[h], s_smallSizes[(t + h) % 4], s_smallSizes[(t + 3 * h + 1) % 4]);
    }
}
