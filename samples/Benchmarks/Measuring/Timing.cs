namespace Benchmarks.Measuring;

/// <summary>How long repeated runs of one thing took, in milliseconds: the median, and the spread as two percentiles.</summary>
internal sealed record Timing(double Median, double P10, double P90, int Count)
{
    /// <exception cref="ArgumentException">There is no value.</exception>
    public static Timing Of(IEnumerable<double> milliseconds)
    {
        double[] sorted = [.. milliseconds.Order()];
        return new Timing(Percentile(sorted, 50), Percentile(sorted, 10), Percentile(sorted, 90), sorted.Length);
    }

    /// <summary>A percentile, between two values in proportion.</summary>
    public static double Percentile(IReadOnlyList<double> sorted, double percent)
    {
        if (sorted.Count == 0)
            throw new ArgumentException("There is no value to take a percentile of.", nameof(sorted));
        double position = percent / 100 * (sorted.Count - 1);
        int below = (int)position;
        int above = Math.Min(below + 1, sorted.Count - 1);
        return sorted[below] + (position - below) * (sorted[above] - sorted[below]);
    }
}
