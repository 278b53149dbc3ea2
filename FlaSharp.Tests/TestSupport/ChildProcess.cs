using System.Diagnostics;
using Xunit;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Runs an explicit test of this executable in a process of its own, which it may break.</summary>
internal static class ChildProcess
{
    /// <summary>Starts all at once, waits for them, and fails unless each ran its one test with success.</summary>
    /// <param name="count">How many processes.</param>
    /// <param name="test">The class that has the test.</param>
    /// <param name="method">The test, which is explicit: it does not run by itself.</param>
    /// <param name="environment">Variables beyond this process's own.</param>
    public static void Run(int count, Type test, string method, params (string name, string value)[] environment)
    {
        var runs = Enumerable.Range(0, count).Select(_ => Start(test, method, environment)).ToList();
        foreach (var (process, output) in runs)
        {
            process.WaitForExit();
            var succeeded = output.Result.Contains("Total: 1, Errors: 0, Failed: 0, Skipped: 0", StringComparison.Ordinal);
            Assert.True(process.ExitCode == 0 && succeeded,
                $"{test.Name}.{method} ended with {process.ExitCode}:\n{output.Result}");
            process.Dispose();
        }
    }

    private static (Process, Task<string>) Start(Type test, string method, (string name, string value)[] environment)
    {
        var executable = Environment.ProcessPath!;
        string[] host = Path.GetFileNameWithoutExtension(executable) == "dotnet" ? [test.Assembly.Location] : [];
        string[] arguments = [.. host, "-explicit", "only", "-method", $"{test.FullName}.{method}", "-noColor"];
        var start = new ProcessStartInfo(executable, arguments)
        {
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
        };
        foreach (var (name, value) in environment)
            start.Environment[name] = value;
        var process = Process.Start(start)!;
        process.StandardInput.Close();
        return (process, process.StandardOutput.ReadToEndAsync());
    }
}
