namespace FlaSharp.Kernels.Cpu;

/// <summary>Spreads independent pieces of a CPU kernel over the cores. The result must not depend on which core takes which piece.</summary>
internal static class CpuParallel
{
    /// <summary>Calls <paramref name="body"/> for 0 to <paramref name="count"/> - 1, on the caller's thread alone if that is all there is.</summary>
    public static void For(int count, Action<int> body)
    {
        if (count == 1 || Environment.ProcessorCount == 1)
        {
            for (var i = 0; i < count; i++)
                body(i);
            return;
        }
        if (OpenMpThreads.AreKnown)
            OpenMpThreads.For(count, body);
        else
            Parallel.For(0, count, body);
    }

    /// <summary>
    /// Deals 0 to <paramref name="count"/> - 1 out in a few ranges per core: <paramref name="body"/> gets the first index and the one
    /// after the last, and can set up its working memory once per range.
    /// </summary>
    public static void ForRanges(int count, Action<int, int> body)
    {
        var ranges = Environment.ProcessorCount == 1 ? 1 : Math.Min(count, 4 * Environment.ProcessorCount);
        For(ranges, range => body((int)((long)count * range / ranges), (int)((long)count * (range + 1) / ranges)));
    }
}
