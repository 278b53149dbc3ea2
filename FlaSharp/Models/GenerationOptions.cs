namespace FlaSharp.Models;

/// <summary>How <see cref="CausalLM.Generate"/> chooses tokens and when it stops.</summary>
public sealed record GenerationOptions
{
    /// <summary>Tokens to add, at most.</summary>
    public int MaxNewTokens { get; init; } = 64;

    /// <summary>Whether tokens are drawn at random; otherwise the likeliest is taken.</summary>
    public bool DoSample { get; init; }

    /// <summary>The logits are divided by this before sampling: below 1 sharper, above 1 flatter.</summary>
    public double Temperature { get; init; } = 1;

    /// <summary>Sample among this many likeliest tokens; all if null.</summary>
    public int? TopK { get; init; }

    /// <summary>
    /// Sample among the likeliest tokens that together have this probability (Holtzman et al. 2019, arXiv:1904.09751); 1 for all.
    /// </summary>
    public double TopP { get; init; } = 1;

    /// <summary>
    /// Sample among the tokens at least this probable relative to the likeliest (Nguyen et al. 2024, arXiv:2407.01082); 0 for
    /// all.
    /// </summary>
    public double MinP { get; init; }

    /// <summary>
    /// Makes tokens that the row has less likely: a positive logit is divided by this, a negative one multiplied (Keskar et al.
    /// 2019, arXiv:1909.05858). 1 for none.
    /// </summary>
    public double RepetitionPenalty { get; init; } = 1;

    /// <summary>Tokens that end a row; those of the model's configuration if null. An empty list never ends one.</summary>
    public IReadOnlyList<int>? EosTokenIds { get; init; }

    /// <summary>Fills a row after its end; by default the configuration's, or else the first end token.</summary>
    public int? PadTokenId { get; init; }

    /// <summary>Seeds the sampling; TorchSharp's own generator is used if null.</summary>
    public long? Seed { get; init; }

    /// <summary>Throws if a value makes no sense.</summary>
    internal void Validate(int vocabSize)
    {
        Require(MaxNewTokens >= 1, nameof(MaxNewTokens), MaxNewTokens, "must be at least 1");
        Require(Temperature > 0 && double.IsFinite(Temperature), nameof(Temperature), Temperature,
            "must be positive; for the likeliest token set DoSample = false");
        Require(TopK is null or >= 1, nameof(TopK), TopK, "must be at least 1, or null for all tokens");
        Require(TopP is > 0 and <= 1, nameof(TopP), TopP, "must be above 0 and at most 1");
        Require(MinP is >= 0 and <= 1, nameof(MinP), MinP, "must be from 0 to 1");
        Require(RepetitionPenalty > 0 && double.IsFinite(RepetitionPenalty), nameof(RepetitionPenalty), RepetitionPenalty,
            "must be positive; 1 for none");
        foreach (var id in EosTokenIds ?? [])
            Require(id >= 0 && id < vocabSize, nameof(EosTokenIds), id, $"must be from 0 to {vocabSize - 1}");
        Require(PadTokenId is not { } pad || (pad >= 0 && pad < vocabSize), nameof(PadTokenId), PadTokenId,
            $"must be from 0 to {vocabSize - 1}");
    }

    private static void Require(bool condition, string name, object? value, string rule)
    {
        if (!condition)
            throw new ArgumentException($"{name} = {value} {rule}.", name);
    }
}
