using System.CommandLine;
using FlaSharp;

namespace LanguageModel.Commands;

/// <summary>doctor: what FlaSharp finds on this machine.</summary>
internal static class DoctorCommand
{
    public static Command Create()
    {
        Option<string?> device = Devices.Option();
        var command = new Command("doctor", "Says which GPU, libraries and kernels are used here, and why.") { device };
        command.SetAction(parsed =>
        {
            Console.Write(Doctor.Report(Devices.Choose(parsed.GetValue(device))));
            return 0;
        });
        return command;
    }
}
