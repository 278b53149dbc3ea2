using System.Text.Json.Serialization;
using FlaSharp;

namespace LanguageModel;

/// <summary>All that decides the losses of a run. Stored with each checkpoint: a run goes on with what it began with.</summary>
internal sealed record TrainOptions
{
    public LayerKind Layer { get; init; } = LayerKind.Gla;

    /// <summary>Of the layers of gated linear attention.</summary>
    public LinearAttentionMode Mode { get; init; } = LinearAttentionMode.Auto;

    /// <summary>A file or folder; null is the .NET documentation.</summary>
    public string? Data { get; init; }

    public string Tokenizer { get; init; } = "bytes";

    /// <summary>Optimizer steps; null leaves it to <see cref="Minutes"/>.</summary>
    public int? Steps { get; init; }

    /// <summary>Time for training, from which the number of steps follows; null leaves it to <see cref="Steps"/>.</summary>
    public double? Minutes { get; init; }

    /// <summary>Sequences per micro-batch.</summary>
    public int Batch { get; init; } = 8;

    /// <summary>Tokens per sequence.</summary>
    public int Seq { get; init; } = 256;

    public int Width { get; init; } = 128;

    /// <summary>Blocks of a mixer and an MLP; Mamba and Mamba-2 get twice as many blocks, which have no MLP.</summary>
    public int Layers { get; init; } = 4;

    public int Heads { get; init; } = 4;

    /// <summary>Highest learning rate.</summary>
    public double Lr { get; init; } = 2e-3;

    /// <summary>Steps until <see cref="Lr"/> is reached.</summary>
    public int Warmup { get; init; } = 50;

    /// <summary>Largest norm of the gradient.</summary>
    public double Clip { get; init; } = 1.0;

    /// <summary>Micro-batches per optimizer step.</summary>
    public int Accumulate { get; init; } = 1;

    public Precision Dtype { get; init; } = Precision.Fp32;

    public long Seed { get; init; } = 1;

    /// <summary>Tokens that one optimizer step sees.</summary>
    [JsonIgnore]
    public long TokensPerStep => (long)Batch * Seq * Accumulate;
}
