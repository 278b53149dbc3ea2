namespace LanguageModel.Commands;

/// <summary>A command line of training.</summary>
internal sealed record TrainRequest
{
    /// <summary>The options of the run, given those of the run to resume, or null.</summary>
    public required Func<TrainOptions?, TrainOptions> Options { get; init; }

    public bool Resume { get; init; }

    /// <summary>The run or checkpoint to resume; null for that of <see cref="Out"/>, or the newest.</summary>
    public string? ResumeFrom { get; init; }

    public string? Out { get; init; }

    public string? Device { get; init; }

    public int SaveEvery { get; init; }

    public bool TensorBoard { get; init; }
}
