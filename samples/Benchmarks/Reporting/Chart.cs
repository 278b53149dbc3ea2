namespace Benchmarks.Reporting;

/// <summary>Bars of positive values on a logarithmic scale, in groups.</summary>
/// <param name="Name">Of its file.</param>
/// <param name="Title">Above it.</param>
/// <param name="Unit">Of the values.</param>
internal sealed record Chart(string Name, string Title, string Unit)
{
    private readonly List<string> _groups = [];
    private readonly List<string> _series = [];
    private readonly Dictionary<(string group, string series), double> _values = [];

    /// <summary>In the order in which they came.</summary>
    public IReadOnlyList<string> Groups => _groups;

    /// <summary>The bars of a group, the same in each.</summary>
    public IReadOnlyList<string> Series => _series;

    public IReadOnlyCollection<double> Values => _values.Values;

    public void Add(string group, string series, double? value)
    {
        if (value is not > 0)
            return;
        if (!_groups.Contains(group))
            _groups.Add(group);
        if (!_series.Contains(series))
            _series.Add(series);
        _values[(group, series)] = value.Value;
    }

    public double? Value(string group, string series) =>
        _values.TryGetValue((group, series), out double value) ? value : null;
}
