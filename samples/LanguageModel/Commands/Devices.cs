using System.CommandLine;
using System.Globalization;
using static TorchSharp.torch;

namespace LanguageModel.Commands;

internal static class Devices
{
    public static Option<string?> Option() =>
        new("--device") { Description = "cpu, cuda or cuda:N; without it cuda if there is one." };

    /// <exception cref="UserError">There is no such device here.</exception>
    public static Device Choose(string? name)
    {
        switch (name)
        {
            case null:
                return cuda.is_available() ? CUDA : CPU;
            case "cpu":
                return CPU;
            case "cuda":
                name = "cuda:0";
                break;
        }

        if (!name.StartsWith("cuda:", StringComparison.Ordinal)
            || !int.TryParse(name.AsSpan(5), NumberStyles.None, CultureInfo.InvariantCulture, out int index))
        {
            throw new UserError($"--device {name}: use cpu, cuda or cuda:N.");
        }

        int count = cuda.is_available() ? cuda.device_count() : 0;
        return index < count
            ? device(name)
            : throw new UserError($"--device {name}: TorchSharp sees {count} CUDA devices here. Use --device cpu, or build with "
                + "-p:TorchBackend=cuda on a machine with a GPU.");
    }
}
