using Benchmarks.Measuring;
using FlaSharp;

namespace Benchmarks.Reporting;

/// <summary>The recommendation that follows from measured layers.</summary>
internal static class Advice
{
    // An explicit mode has to beat Auto by more than the noise to be worth fixing in a program.
    private const double WorthAnExplicitMode = 1.05;

    /// <summary>Sentences that name the layer and the reason: it is the fastest to train.</summary>
    /// <exception cref="InvalidOperationException">Nothing was measured.</exception>
    public static string Of(IReadOnlyList<Candidate> candidates, ModelSizes sizes)
    {
        Candidate best = Choose(candidates, candidate => candidate.Both);
        string advice = $"Take {best.Choice}: forward and backward take {Cell.Text(best.Both.Median)} ms for {sizes}, "
            + $"{Comparison(best, candidates)}.";
        Candidate reading = Choose(candidates, candidate => candidate.Forward);
        return reading.Choice == best.Choice
            ? advice
            : $"{advice} For forward alone {reading.Choice} is faster: {Cell.Text(reading.Forward.Median)} ms instead of "
                + $"{Cell.Text(best.Forward.Median)}.";
    }

    private static Candidate Choose(IReadOnlyList<Candidate> candidates, Func<Candidate, Timing> timing)
    {
        Candidate fastest = candidates.MinBy(candidate => timing(candidate).Median)
            ?? throw new InvalidOperationException("No layer was measured.");
        Candidate? auto = candidates.FirstOrDefault(candidate => candidate.Choice.Mode == LinearAttentionMode.Auto);
        return fastest.Choice.Mode is not null && auto is not null
            && timing(auto).Median <= timing(fastest).Median * WorthAnExplicitMode ? auto : fastest;
    }

    private static string Comparison(Candidate best, IReadOnlyList<Candidate> candidates)
    {
        Candidate[] others = [.. candidates
            .Where(candidate => candidate.Choice.Name != best.Choice.Name)
            .GroupBy(candidate => candidate.Choice.Name)
            .Select(group => group.MinBy(candidate => candidate.Both.Median)!)
            .OrderBy(candidate => candidate.Both.Median)];
        return others.Length == 0
            ? "and no other layer was measured"
            : string.Join(", ", others.Select(other =>
                $"{other.Choice.Name} {other.Both.Median / best.Both.Median:F2} times as long"));
    }
}
