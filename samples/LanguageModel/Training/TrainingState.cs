namespace LanguageModel.Training;

/// <summary>What a checkpoint holds besides the tensors.</summary>
internal sealed record TrainingState
{
    public required TrainOptions Options { get; init; }

    /// <summary>Steps done.</summary>
    public int Step { get; init; }

    /// <summary>Steps of the whole run; null while the speed is being measured.</summary>
    public int? TotalSteps { get; init; }

    /// <summary>Time in training steps, and time since training began.</summary>
    public double StepSeconds { get; init; }

    public double TotalSeconds { get; init; }

    /// <summary>Updates of the optimizer: fewer than steps if fp16 overflowed.</summary>
    public long Updates { get; init; }

    public double LossScale { get; init; } = 1;

    public int GoodSteps { get; init; }

    /// <summary>Bytes of metrics.jsonl that belong to the steps done.</summary>
    public long MetricsLength { get; init; }

    /// <summary>Of the text.</summary>
    public string Fingerprint { get; init; } = "";
}
