using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;
using LanguageModel;
using LanguageModel.Commands;
using SkiaSharp;
using Spectre.Console;

namespace Benchmarks.Reporting;

/// <summary>Where a report goes: the terminal, a JSON file, a folder. A file appears when it is complete.</summary>
internal sealed class ReportOutput
{
    private const int WidthOfFiles = 240; // of a terminal that is none

    private static readonly JsonSerializerOptions s_indented = new()
    {
        WriteIndented = true,
        Encoder = System.Text.Encodings.Web.JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    private readonly string? _json;
    private readonly string? _folder;
    private readonly string? _commit;
    private readonly string _commandLine;
    private readonly DateTime _date = DateTime.UtcNow;

    /// <param name="commandLine">As the program got it.</param>
    /// <param name="json">A file, or null.</param>
    /// <param name="folder">For JSON, markdown and charts, or null.</param>
    /// <param name="commit">Of the program, if known.</param>
    /// <exception cref="UserError">The file or the folder cannot be written to.</exception>
    public ReportOutput(IEnumerable<string> commandLine, string? json, string? folder, string? commit)
    {
        (_json, _folder, _commit) = (json, folder, commit);
        _commandLine = string.Join(' ', commandLine.Prepend("Benchmarks"));
        if (folder is not null)
            Runs.RequireWritable(folder);
        if (json is not null)
        {
            string parent = Path.GetDirectoryName(Path.GetFullPath(json))!;
            if (Directory.Exists(json) || !Directory.Exists(parent))
                throw new UserError($"--json {json}: name a file in an existing folder.");
        }
    }

    /// <summary>Says that something was measured.</summary>
    public static void Progress(string line) => Console.WriteLine(line);

    /// <summary>Writes the JSON of what there is so far, so that an interruption leaves it.</summary>
    public void Save(Report report)
    {
        string text = report.Json(_date, _commandLine, _commit).ToJsonString(s_indented) + "\n";
        foreach (string file in JsonFiles(report))
            Write(file, Encoding.UTF8.GetBytes(text));
    }

    /// <summary>Prints and writes everything.</summary>
    /// <returns>The exit code.</returns>
    public int Finish(Report report)
    {
        Save(report);
        if (_folder is not null)
        {
            string markdown = report.Markdown(_date, _commandLine, _commit);
            Write(Path.Combine(_folder, $"{report.Command}.md"), Encoding.UTF8.GetBytes(markdown));
            foreach (Chart chart in report.Charts.Where(chart => chart.Values.Count > 0))
                Write(Path.Combine(_folder, report.FileOf(chart)), ChartFile.Png(chart));
            if (!SKFontManager.Default.FontFamilies.Any())
                Progress("There are no fonts here, so charts have no text: the command chart draws them elsewhere, from the JSON.");
        }

        Print(report);
        return report.Failures.Count == 0 ? 0 : 1;
    }

    private static void Print(Report report)
    {
        IAnsiConsole console = AnsiConsole.Create(new AnsiConsoleSettings { Out = new AnsiConsoleOutput(Console.Out) });
        if (Console.IsOutputRedirected)
            console.Profile.Width = WidthOfFiles;
        console.WriteLine();
        console.WriteLine($"{report.Title}: {report.Machine.Device}");
        var table = new Spectre.Console.Table().Border(TableBorder.Markdown);
        foreach (int column in report.Table.Filled)
            table.AddColumn(new TableColumn(new Text(report.Table.Columns[column].Title)));
        foreach (IReadOnlyList<object?> row in report.Table.Rows)
            table.AddRow(report.Table.Filled.Select(column => new Text(Cell.Text(row[column]))));
        if (report.Table.Rows.Count > 0)
            console.Write(table);
        foreach (string note in report.Notes)
            Console.WriteLine($"- {note}");
        foreach (string failure in report.Failures)
            Console.Error.WriteLine(failure);
    }

    private IEnumerable<string> JsonFiles(Report report)
    {
        if (_json is not null)
            yield return _json;
        if (_folder is not null)
            yield return Path.Combine(_folder, $"{report.Command}.json");
    }

    /// <summary>Writes a file that appears when it is complete.</summary>
    public static void Write(string file, byte[] content)
    {
        string temporary = $"{file}.{Environment.ProcessId}.tmp";
        try
        {
            File.WriteAllBytes(temporary, content);
            File.Move(temporary, file, overwrite: true);
        }
        finally
        {
            File.Delete(temporary);
        }
    }
}
