using System.Diagnostics;
using System.Text.Json.Nodes;

namespace Benchmarks.Measuring;

/// <summary>Runs a command of this program in a process of its own.</summary>
internal static class ChildProcess
{
    /// <returns>The JSON of the last line that it printed.</returns>
    /// <exception cref="InvalidOperationException">It failed; the message is what it said.</exception>
    public static JsonObject Run(IEnumerable<string> arguments, params (string name, string value)[] environment)
    {
        string program = Path.Combine(AppContext.BaseDirectory, typeof(ChildProcess).Assembly.GetName().Name!);
        string executable = OperatingSystem.IsWindows() ? program + ".exe" : program;
        ProcessStartInfo start = File.Exists(executable)
            ? new ProcessStartInfo(executable, arguments)
            : new ProcessStartInfo("dotnet", arguments.Prepend(program + ".dll"));
        start.RedirectStandardOutput = start.RedirectStandardError = true;
        foreach ((string name, string value) in environment)
            start.Environment[name] = value;
        using Process process = Process.Start(start)!;
        Task<string> errors = process.StandardError.ReadToEndAsync();
        string output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        string last = output.TrimEnd().Split('\n')[^1];
        return process.ExitCode == 0 && last.StartsWith('{')
            ? JsonNode.Parse(last)!.AsObject()
            : throw new InvalidOperationException(
                $"{string.Join(' ', arguments)} ended with {process.ExitCode}: {errors.Result.Trim().ReplaceLineEndings(" ")}");
    }
}
