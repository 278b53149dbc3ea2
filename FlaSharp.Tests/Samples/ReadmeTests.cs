using System.Text.RegularExpressions;
using FlaSharp.Tests.TestSupport;
using Microsoft.CodeAnalysis.CSharp.Scripting;
using Xunit;

namespace FlaSharp.Tests.Samples;

public sealed partial class ReadmeTests
{
    [Fact]
    public async Task The_training_example_runs()
    {
        CancellationToken cancellation = TestContext.Current.CancellationToken;
        string readme = await File.ReadAllTextAsync(Path.Combine(AppContext.BaseDirectory, "README.md"), cancellation);
        string example = CodeBlock().Match(readme).Groups[1].Value;
        Assert.Contains("step < 500", example, StringComparison.Ordinal);
        Assert.InRange(example.Split('\n').Length, 10, 25);

        using var folder = new TemporaryFolder();
        string current = Directory.GetCurrentDirectory();
        TextWriter standardOut = Console.Out;
        using var output = new StringWriter();
        try
        {
            Directory.SetCurrentDirectory(folder.Path);
            Console.SetOut(output);
            string book = string.Concat(Enumerable.Repeat("It was a dark and stormy night. ", 20));
            await File.WriteAllTextAsync("book.txt", book, cancellation);
            await CSharpScript.RunAsync(example.Replace("step < 500", "step < 2", StringComparison.Ordinal), Scripting.Options,
                cancellationToken: cancellation);
        }
        finally
        {
            Directory.SetCurrentDirectory(current);
            Console.SetOut(standardOut);
        }

        Assert.Matches(@"^0 5\.\d{3}\s*$", output.ToString());
        Assert.True(File.Exists(Path.Combine(folder.Path, "my-model", "model.safetensors")));
    }

    [GeneratedRegex("```csharp\n(.*?)```", RegexOptions.Singleline)]
    private static partial Regex CodeBlock();
}
