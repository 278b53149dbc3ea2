using System.Globalization;
using System.Text.RegularExpressions;

namespace FlaSharp.Kernels.Runtime;

/// <summary>What ptxas reported of one compilation. All zero for PTX, which it does not see.</summary>
internal sealed partial record CompileReport
{
    /// <summary>Registers of a thread of the entry function.</summary>
    public required int Registers { get; init; }

    /// <summary>Stack of a thread of the entry function: an array that is indexed at run time lies there.</summary>
    public required int StackBytes { get; init; }

    /// <summary>Of all functions together.</summary>
    public required int SpillStoreBytes { get; init; }

    /// <summary>Of all functions together.</summary>
    public required int SpillLoadBytes { get; init; }

    /// <summary>Static shared memory of the entry function.</summary>
    public required int StaticSharedBytes { get; init; }

    /// <summary>That wgmma is serialised (C7510 to C7515) or setmaxnreg ignored (C7508).</summary>
    public required IReadOnlyList<string> Warnings { get; init; }

    /// <summary>What a test may not let pass; empty if nothing.</summary>
    /// <param name="allowedSpillBytes">Of spill stores, and as many of spill loads and a half.</param>
    public IEnumerable<string> Problems(int allowedSpillBytes)
    {
        if (SpillStoreBytes > allowedSpillBytes || 2 * SpillLoadBytes > 3 * allowedSpillBytes)
            yield return $"{SpillStoreBytes} bytes of spill stores, {SpillLoadBytes} of spill loads";
        foreach (var warning in Warnings)
            yield return warning;
    }

    /// <summary>Reads the log of a compilation with <c>--ptxas-options=-v</c>.</summary>
    public static CompileReport Parse(string log, string entry)
    {
        int registers = 0, stack = 0, shared = 0, stores = 0, loads = 0;
        var entries = Entry().Matches(log).Select(match => match.Groups["name"].Value).ToHashSet();
        var (named, function) = ("", ""); // the entry named last: functions that it calls come between it and what it uses
        foreach (var line in log.Split('\n'))
        {
            if (Entry().Match(line) is { Success: true } start)
            {
                named = start.Groups["name"].Value;
            }
            else if (Function().Match(line) is { Success: true } header)
            {
                function = header.Groups["name"].Value;
                if (entries.Contains(function))
                    named = function;
            }
            else if (Stack().Match(line) is { Success: true } frame)
            {
                stores += Number(frame, "stores");
                loads += Number(frame, "loads");
                if (function == entry)
                    stack = Number(frame, "stack");
            }
            else if (named == entry && Used().Match(line) is { Success: true } used)
            {
                registers = Number(used, "registers");
                if (Shared().Match(line) is { Success: true } smem)
                    shared = Number(smem, "bytes");
            }
        }
        return new CompileReport
        {
            Registers = registers,
            StackBytes = stack,
            SpillStoreBytes = stores,
            SpillLoadBytes = loads,
            StaticSharedBytes = shared,
            Warnings = [.. log.Split('\n').Select(line => line.Trim()).Where(line => Slow().IsMatch(line))],
        };
    }

    private static int Number(Match match, string group) =>
        int.Parse(match.Groups[group].ValueSpan, CultureInfo.InvariantCulture);

    [GeneratedRegex(@"Compiling entry function '?(?<name>[\w$]+)")]
    private static partial Regex Entry();

    [GeneratedRegex(@"Function properties for '?(?<name>[\w$]+)")]
    private static partial Regex Function();

    [GeneratedRegex(@"(?<stack>\d+) bytes stack frame, (?<stores>\d+) bytes spill stores, (?<loads>\d+) bytes spill loads")]
    private static partial Regex Stack();

    [GeneratedRegex(@"Used (?<registers>\d+) registers")]
    private static partial Regex Used();

    [GeneratedRegex(@"(?<bytes>\d+) bytes smem")]
    private static partial Regex Shared();

    [GeneratedRegex(@"\(C75(08|1[0-5])\)")]
    private static partial Regex Slow();
}
