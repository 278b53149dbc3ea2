namespace LanguageModel;

/// <summary>What mixes the tokens along time.</summary>
internal enum LayerKind
{
    Gla,
    Mamba,
    Mamba2,
    Softmax,

    /// <summary>Gated linear attention with softmax attention in every fourth layer.</summary>
    Hybrid,
}
