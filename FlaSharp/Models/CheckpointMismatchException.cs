namespace FlaSharp.Models;

/// <summary>The tensors of a checkpoint are not those of the model. All that differs is listed; nothing was loaded.</summary>
public sealed class CheckpointMismatchException : Exception
{
    internal CheckpointMismatchException(
        string message, IReadOnlyList<string> missing, IReadOnlyList<string> unexpected, IReadOnlyList<string> unfit)
        : base(message) => (MissingKeys, UnexpectedKeys, UnfitKeys) = (missing, unexpected, unfit);

    /// <summary>Parameters of the model that the checkpoint lacks.</summary>
    public IReadOnlyList<string> MissingKeys { get; }

    /// <summary>Tensors of the checkpoint that the model has no place for.</summary>
    public IReadOnlyList<string> UnexpectedKeys { get; }

    /// <summary>Tensors of another shape than the model's, or of a dtype that is no floating-point number.</summary>
    public IReadOnlyList<string> UnfitKeys { get; }
}
