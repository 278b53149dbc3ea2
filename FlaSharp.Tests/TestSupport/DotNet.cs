using System.Diagnostics;
using Xunit;

namespace FlaSharp.Tests.TestSupport;

/// <summary>Runs the .NET SDK's command line.</summary>
internal static class DotNet
{
    private static readonly Lazy<bool> s_hasSdk = new(() =>
    {
        try
        {
            return Start(".", "--list-sdks").Length > 0;
        }
        catch (System.ComponentModel.Win32Exception)
        {
            return false; // no dotnet on the path
        }
    });

    public static void RequireSdk() => Assert.SkipUnless(s_hasSdk.Value, "There is no .NET SDK on the path.");

    /// <summary>Runs a command to its end and gives what it printed; fails the test if it fails.</summary>
    public static string Run(string folder, params string[] arguments) => Start(folder, arguments);

    private static string Start(string folder, params string[] arguments)
    {
        var start = new ProcessStartInfo("dotnet", arguments)
        {
            WorkingDirectory = folder,
            RedirectStandardInput = true,
            RedirectStandardOutput = true,
            RedirectStandardError = true,
        };
        foreach (var inherited in start.Environment.Keys.Where(key => key.StartsWith("MSBuild", StringComparison.OrdinalIgnoreCase)).ToList())
            start.Environment.Remove(inherited); // of the build that started these tests
        start.Environment["MSBUILDDISABLENODEREUSE"] = "1";
        start.Environment["UseSharedCompilation"] = "false";
        start.Environment["DOTNET_CLI_TELEMETRY_OPTOUT"] = "1";
        start.Environment["DOTNET_NOLOGO"] = "1";

        using var process = Process.Start(start)!;
        process.StandardInput.Close();
        var errors = process.StandardError.ReadToEndAsync();
        var output = process.StandardOutput.ReadToEnd();
        process.WaitForExit();
        Assert.True(process.ExitCode == 0,
            $"dotnet {string.Join(' ', arguments)} ended with {process.ExitCode}:\n{output}\n{errors.Result}");
        return output;
    }
}
