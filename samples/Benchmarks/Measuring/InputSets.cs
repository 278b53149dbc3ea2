namespace Benchmarks.Measuring;

/// <summary>How many sets of inputs to take in turns, so that none is in the cache when its turn comes.</summary>
internal static class InputSets
{
    public const int Most = 64;

    /// <summary>Sets that together exceed twice the cache, at least two, and at most <see cref="Most"/> of tiny ones.</summary>
    public static int Count(long bytesOfOne, long cacheBytes) => (int)Math.Clamp(2 * cacheBytes / bytesOfOne + 1, 2, Most);
}
