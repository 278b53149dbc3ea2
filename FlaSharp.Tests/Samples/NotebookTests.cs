using FlaSharp.Tests.TestSupport;
using Microsoft.CodeAnalysis.CSharp.Scripting;
using Microsoft.CodeAnalysis.Scripting;
using Xunit;

namespace FlaSharp.Tests.Samples;

/// <summary>
/// The notebook sample. After a change to language-model.cs, write the notebook anew with its outputs: set
/// <c>FLASHARP_WRITE_NOTEBOOK</c> to the full path of samples/Notebook and run this test.
/// </summary>
public sealed class NotebookTests
{
    private const string ProgramFile = "language-model.cs";
    private const string NotebookFile = "language-model.ipynb";

    private static readonly string s_folder = Path.Combine(AppContext.BaseDirectory, "Samples", "Notebook");

    [Fact]
    public async Task Every_cell_runs_in_order_and_shows_what_the_notebook_shows()
    {
        IReadOnlyList<NotebookCell> cells = Notebook.FromProgram(await ReadAsync(ProgramFile));
        List<CellOutput> outputs = await RunAsync(cells.Where(cell => cell.IsCode));
        if (Environment.GetEnvironmentVariable("FLASHARP_WRITE_NOTEBOOK") is { Length: > 0 } target)
        {
            await File.WriteAllTextAsync(
                Path.Combine(target, NotebookFile), Notebook.Write(cells, outputs), TestContext.Current.CancellationToken);
            return;
        }

        string committed = await ReadAsync(NotebookFile);
        Assert.Equal(cells, Notebook.Parse(committed));
        Assert.Equal(
            Notebook.ShownOutputs(committed), outputs.Select(output => (output.Text.Length > 0, output.Pictures.Count > 0)));
        Assert.Contains(outputs, output => output.Pictures.Count > 0);
    }

    private static Task<string> ReadAsync(string name) =>
        File.ReadAllTextAsync(Path.Combine(s_folder, name), TestContext.Current.CancellationToken);

    private static async Task<List<CellOutput>> RunAsync(IEnumerable<NotebookCell> cells)
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        using var folder = new TemporaryFolder();
        string current = Directory.GetCurrentDirectory();
        TextWriter standardOut = Console.Out;
        var outputs = new List<CellOutput>();
        var seen = new HashSet<string>();
        ScriptState<object>? state = null;
        try
        {
            Directory.SetCurrentDirectory(folder.Path);
            foreach (NotebookCell cell in cells)
            {
                using var output = new StringWriter { NewLine = "\n" };
                Console.SetOut(output);
                // The assemblies are loaded: no packages to fetch.
                var lines = cell.Source.Split('\n').Where(line => !line.StartsWith("#r", StringComparison.Ordinal));
                string code = string.Join('\n', lines);
                state = state is null
                    ? await CSharpScript.RunAsync(code, Scripting.Options, cancellationToken: cancellation)
                    : await state.ContinueWithAsync(code, Scripting.Options, cancellation);

                var pictures = Directory.EnumerateFiles(folder.Path, "*.png", SearchOption.AllDirectories).Where(seen.Add);
                outputs.Add(new CellOutput(output.ToString(), [.. pictures.Select(File.ReadAllBytes)]));
            }
        }
        finally
        {
            Directory.SetCurrentDirectory(current);
            Console.SetOut(standardOut);
        }

        return outputs;
    }
}
