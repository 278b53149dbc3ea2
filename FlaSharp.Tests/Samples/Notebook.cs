using System.Text.Encodings.Web;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace FlaSharp.Tests.Samples;

/// <summary>A piece of a notebook: text in Markdown, or code.</summary>
internal sealed record NotebookCell(bool IsCode, string Source);

/// <summary>What a cell wrote, and the pictures it saved.</summary>
internal sealed record CellOutput(string Text, IReadOnlyList<byte[]> Pictures);

/// <summary>
/// A notebook made from a file-based program, so that the two cannot come to differ: a block of comments that begins with a
/// heading is a cell of text, and what follows it is a cell of code.
/// </summary>
internal static class Notebook
{
    private const string Packages = """
        #r "nuget: FlaSharp"
        #r "nuget: TorchSharp-cpu"
        #r "nuget: ScottPlot"
        """;

    private static readonly JsonSerializerOptions s_json = new()
    {
        WriteIndented = true,
        IndentSize = 1,
        NewLine = "\n",
        Encoder = JavaScriptEncoder.UnsafeRelaxedJsonEscaping,
    };

    public static IReadOnlyList<NotebookCell> FromProgram(string program)
    {
        var cells = new List<NotebookCell>();
        var lines = new List<string>();
        bool isCode = true;

        void End()
        {
            string source = string.Join('\n', lines).Trim('\n');
            if (source.Length > 0)
                cells.Add(new NotebookCell(isCode, source));
            lines.Clear();
        }

        foreach (string line in program.Split('\n').Where(line => !line.StartsWith("#:", StringComparison.Ordinal)))
        {
            bool isHeading = line.StartsWith("// #", StringComparison.Ordinal);
            bool isComment = line.StartsWith("//", StringComparison.Ordinal);
            if (isHeading || (!isCode && !isComment))
            {
                End();
                isCode = !isHeading;
            }

            lines.Add(isCode ? line : line[Math.Min(3, line.Length)..]);
        }

        End();
        cells.Insert(1, new NotebookCell(true, Packages));
        return cells;
    }

    public static IReadOnlyList<NotebookCell> Parse(string notebook) =>
    [
        .. JsonNode.Parse(notebook)!["cells"]!.AsArray().Select(cell => new NotebookCell(
            (string?)cell!["cell_type"] == "code",
            string.Concat(cell["source"]!.AsArray().Select(line => (string?)line)))),
    ];

    /// <summary>Whether the notebook shows text or a picture for each code cell.</summary>
    public static IReadOnlyList<(bool text, bool picture)> ShownOutputs(string notebook) =>
    [
        .. JsonNode.Parse(notebook)!["cells"]!.AsArray().Where(cell => (string?)cell!["cell_type"] == "code").Select(cell =>
        {
            var kinds = cell!["outputs"]!.AsArray().Select(output => (string?)output!["output_type"]).ToList();
            return (kinds.Contains("stream"), kinds.Contains("display_data"));
        }),
    ];

    public static string Write(IReadOnlyList<NotebookCell> cells, IReadOnlyList<CellOutput> outputs)
    {
        var array = new JsonArray();
        int code = 0;
        foreach (NotebookCell cell in cells)
        {
            var json = new JsonObject
            {
                ["cell_type"] = cell.IsCode ? "code" : "markdown",
                ["metadata"] = new JsonObject(),
                ["source"] = Lines(cell.Source),
            };
            if (cell.IsCode)
            {
                CellOutput output = outputs[code++];
                json["execution_count"] = code;
                json["outputs"] = Outputs(output);
            }

            array.Add(json);
        }

        return new JsonObject
        {
            ["cells"] = array,
            ["metadata"] = new JsonObject
            {
                ["kernelspec"] = new JsonObject { ["display_name"] = ".NET (C#)", ["language"] = "C#", ["name"] = ".net-csharp" },
                ["language_info"] = new JsonObject { ["file_extension"] = ".cs", ["name"] = "C#" },
            },
            ["nbformat"] = 4,
            ["nbformat_minor"] = 4,
        }.ToJsonString(s_json) + "\n";
    }

    private static JsonArray Outputs(CellOutput output)
    {
        var outputs = new JsonArray();
        if (output.Text.Length > 0)
            outputs.Add(new JsonObject { ["name"] = "stdout", ["output_type"] = "stream", ["text"] = Lines(output.Text) });
        foreach (byte[] picture in output.Pictures)
        {
            outputs.Add(new JsonObject
            {
                ["data"] = new JsonObject { ["image/png"] = Convert.ToBase64String(picture) },
                ["metadata"] = new JsonObject(),
                ["output_type"] = "display_data",
            });
        }

        return outputs;
    }

    /// <summary>The format wants a text as lines that keep their ends.</summary>
    private static JsonArray Lines(string text)
    {
        string[] lines = text.Split('\n');
        return [.. lines.Select((line, i) => i < lines.Length - 1 ? line + "\n" : line).Where(line => line != "")];
    }
}
