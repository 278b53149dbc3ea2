namespace Benchmarks.Reporting;

/// <summary>Measured values in rows. A cell is a text, a number, a <see cref="Measuring.Timing"/>, or null for none.</summary>
internal sealed class Table(params Column[] columns)
{
    private readonly List<object?[]> _rows = [];

    public IReadOnlyList<Column> Columns => columns;

    public IReadOnlyList<IReadOnlyList<object?>> Rows => _rows;

    /// <summary>The columns that have a value in some row, by their place.</summary>
    public IReadOnlyList<int> Filled =>
        [.. Enumerable.Range(0, columns.Length).Where(column => _rows.Any(row => row[column] is not null))];

    /// <exception cref="ArgumentException">There is not one cell for each column.</exception>
    public void Add(params object?[] cells)
    {
        if (cells.Length != columns.Length)
            throw new ArgumentException($"There are {columns.Length} columns, but {cells.Length} cells.", nameof(cells));
        _rows.Add(cells);
    }
}
