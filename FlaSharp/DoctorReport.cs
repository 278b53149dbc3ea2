using System.Text;

namespace FlaSharp;

/// <summary>What <see cref="Doctor"/> found, in words.</summary>
public sealed record DoctorReport
{
    /// <summary>Version of FlaSharp.</summary>
    public required string FlaSharp { get; init; }

    /// <summary>Each GPU that the driver sees, or why there is none.</summary>
    public required IReadOnlyList<string> Gpus { get; init; }

    /// <summary>The CUDA version that the driver supports, or why there is none.</summary>
    public required string Driver { get; init; }

    /// <summary>Version of TorchSharp.</summary>
    public required string TorchSharp { get; init; }

    /// <summary>Version and folder of libtorch, and whether it can use a GPU.</summary>
    public required string Libtorch { get; init; }

    /// <summary>Version and file of the kernels' compiler, or where it was looked for.</summary>
    public required string Nvrtc { get; init; }

    /// <summary>Folder of the compiled kernels and how much is in it.</summary>
    public required string Cache { get; init; }

    /// <summary>Whether an operation throws where its kernel cannot run.</summary>
    public required bool Strict { get; init; }

    /// <summary>The device that <see cref="Operations"/> is about.</summary>
    public required string Device { get; init; }

    /// <summary>What computes each operation there.</summary>
    public required IReadOnlyList<OperationPath> Operations { get; init; }

    /// <summary>The report as lines of text.</summary>
    public override string ToString()
    {
        var text = new StringBuilder();
        Add("FlaSharp", FlaSharp);
        foreach (var gpu in Gpus)
            Add("GPU", gpu);
        Add("driver", Driver);
        Add("TorchSharp", TorchSharp);
        Add("libtorch", Libtorch);
        Add("NVRTC", Nvrtc);
        Add("kernel cache", Cache);
        Add("strict", Strict ? "yes" : "no");
        text.Append($"\noperations on {Device}\n");
        var width = Operations.Select(operation => operation.Operation.Length).DefaultIfEmpty().Max();
        foreach (var operation in Operations)
            text.Append(
                $"  {operation.Operation.PadRight(width)} {operation.Path,-9} {Indented(operation.Reason, width + 13)}\n");
        return text.ToString();

        void Add(string name, string value) => text.Append($"{name,-13} {Indented(value, 14)}\n");
    }

    private static string Indented(string value, int columns) =>
        value.Replace("\n", "\n" + new string(' ', columns), StringComparison.Ordinal);
}
