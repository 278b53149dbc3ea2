using System.CommandLine;
using System.Runtime.InteropServices;
using FlaSharp.IO;
using FlaSharp.Models;

namespace LanguageModel.Commands;

/// <summary>The program: training without a command, and generate, eval, bench and doctor.</summary>
internal static class CommandLine
{
    /// <returns>0, 1 after an error of the user, 130 after an interruption.</returns>
    public static int Run(string[] args)
    {
        using var stop = new CancellationTokenSource();
        void Stop(PosixSignalContext context)
        {
            context.Cancel = true;
            stop.Cancel();
        }

        using var interrupt = PosixSignalRegistration.Create(PosixSignal.SIGINT, Stop);
        using var terminate = PosixSignalRegistration.Create(PosixSignal.SIGTERM, Stop);
        return Run(args, stop.Token);
    }

    public static int Run(string[] args, CancellationToken stop)
    {
        var root = new RootCommand("Trains a language model of FlaSharp's layers, on the .NET documentation or on your text.");
        var training = new TrainCommandLine();
        training.AddTo(root);
        root.SetAction(parsed => TrainCommand.Run(training.Read(parsed), stop));
        root.Subcommands.Add(GenerateCommand.Create(stop));
        root.Subcommands.Add(EvalCommand.Create());
        root.Subcommands.Add(BenchCommand.Create());
        root.Subcommands.Add(DoctorCommand.Create());

        ParseResult parsed = root.Parse(args);
        try
        {
            if (parsed.Errors.Count > 0)
                throw new UserError(parsed.Errors[0].Message);
            return parsed.Invoke(new InvocationConfiguration { EnableDefaultExceptionHandler = false });
        }
        catch (Exception e) when (e is UserError or IOException or UnauthorizedAccessException or InvalidDataException
            or SafeTensorsException or CheckpointMismatchException)
        {
            // A damaged checkpoint or a full disk is no defect of the program either.
            Console.Error.WriteLine(e.Message);
            return 1;
        }
    }
}
