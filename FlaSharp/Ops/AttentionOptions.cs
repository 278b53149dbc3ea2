namespace FlaSharp.Ops;

/// <summary>How scores become weights, and what is returned: see <see cref="FlaOps.Attention"/>.</summary>
internal sealed record AttentionOptions
{
    public required bool Causal { get; init; }

    public required double Scale { get; init; }

    /// <summary>Null if it hides nothing.</summary>
    public int? Window { get; init; }

    public double? Softcap { get; init; }

    public double Dropout { get; init; }

    public bool HasSinks { get; init; }

    public bool HasAlibiSlopes { get; init; }

    public bool ReturnsLogSumExp { get; init; }
}
