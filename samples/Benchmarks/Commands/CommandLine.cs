using System.CommandLine;
using FlaSharp.Kernels.Interop;
using LanguageModel;

namespace Benchmarks.Commands;

/// <summary>The program.</summary>
internal static class CommandLine
{
    /// <returns>0, or 1 after an error of the user or where something could not be measured.</returns>
    public static int Run(string[] args)
    {
        var root = new RootCommand("Measures FlaSharp's operations and layers on this machine.");
        root.Subcommands.Add(KernelsCommand.Create());
        root.Subcommands.Add(LayersCommand.Create());
        root.Subcommands.Add(DecodeCommand.Create());
        root.Subcommands.Add(FirstCallCommand.Create());
        root.Subcommands.Add(FirstCallCommand.CreateChild());
        root.Subcommands.Add(MemoryCommand.Create());
        root.Subcommands.Add(MemoryCommand.CreateChild());
        root.Subcommands.Add(OverheadCommand.Create());
        root.Subcommands.Add(AdviseCommand.Create());
        root.Subcommands.Add(ChartCommand.Create());

        ParseResult parsed = root.Parse(args);
        try
        {
            if (parsed.Errors.Count > 0)
                throw new UserError(parsed.Errors[0].Message);
            return parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
        }
        catch (Exception e) when (e is UserError or IOException or UnauthorizedAccessException or CudaException)
        {
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }
}
