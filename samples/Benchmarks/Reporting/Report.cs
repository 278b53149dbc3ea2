using System.Text;
using System.Text.Json.Nodes;

namespace Benchmarks.Reporting;

/// <summary>What a command measured.</summary>
/// <param name="Command">Its name.</param>
/// <param name="Title">What the table is.</param>
/// <param name="Machine">What it was measured on.</param>
/// <param name="Table">The values.</param>
internal sealed record Report(string Command, string Title, Machine Machine, Table Table)
{
    /// <summary>How it was measured, and what was left out and why.</summary>
    public List<string> Notes { get; } = [];

    /// <summary>What could not be measured; not empty makes the program fail.</summary>
    public List<string> Failures { get; } = [];

    /// <summary>Values that hold for the whole table.</summary>
    public JsonObject Values { get; } = [];

    public List<Chart> Charts { get; } = [];

    public JsonObject Json(DateTime date, string commandLine, string? commit) => new()
    {
        ["command"] = Command,
        ["title"] = Title,
        ["date"] = date.ToString("yyyy-MM-dd'T'HH:mm:ss'Z'"),
        ["command_line"] = commandLine,
        ["commit"] = commit,
        ["machine"] = Machine.Json(),
        ["values"] = Values.DeepClone(),
        ["rows"] = new JsonArray([.. Table.Rows.Select(Row)]),
        ["notes"] = Texts(Notes),
        ["failures"] = Texts(Failures),
    };

    public string Markdown(DateTime date, string commandLine, string? commit)
    {
        var text = new StringBuilder();
        text.Append($"# {Title}\n\n");
        text.Append($"{date:yyyy-MM-dd}; {(commit is null ? "" : $"commit {commit}; ")}{Machine}. Command: `{commandLine}`.\n\n");
        IReadOnlyList<int> shown = Table.Filled;
        text.Append($"| {string.Join(" | ", shown.Select(column => Table.Columns[column].Title))} |\n");
        text.Append($"|{string.Concat(shown.Select(_ => "---|"))}\n");
        foreach (IReadOnlyList<object?> row in Table.Rows)
            text.Append($"| {string.Join(" | ", shown.Select(column => Cell.Text(row[column])))} |\n");
        text.Append('\n');
        foreach (string line in Notes.Concat(Failures))
            text.Append($"- {line}\n");
        foreach (Chart chart in Charts.Where(chart => chart.Values.Count > 0))
            text.Append($"\n![{chart.Title}]({FileOf(chart)})\n");
        return text.ToString();
    }

    public string FileOf(Chart chart) => $"{Command}-{chart.Name}.png";

    private JsonObject Row(IReadOnlyList<object?> cells)
    {
        var row = new JsonObject();
        for (int i = 0; i < cells.Count; i++)
            row[Table.Columns[i].Key] = Cell.Json(cells[i]);
        return row;
    }

    private static JsonArray Texts(IEnumerable<string> lines) => [.. lines.Select(line => (JsonNode)line)];
}
