using System.Runtime.CompilerServices;
using FlaSharp.Interop;
using FlaSharp.Layers;
using TorchSharp;
using static TorchSharp.torch;
using Padding = FlaSharp.Layers.Padding;

namespace FlaSharp.Models;

public sealed partial class CausalLM
{
    /// <summary>Continues a prompt. Reads it once and then feeds token by token, going on from the layers' states.</summary>
    /// <param name="prompt">Token ids, int64 [B, T].</param>
    /// <param name="options">How to choose tokens and when to stop; the likeliest 64 if null.</param>
    /// <param name="attentionMask">[B, T], 1 at tokens and 0 at padding, for prompts of different lengths.</param>
    /// <returns>
    /// int64 [B, T + n]: the prompt and n new tokens, n at most MaxNewTokens and less if every row has ended. A row that ends
    /// earlier is filled up with the pad token.
    /// </returns>
    /// <exception cref="ArgumentException">
    /// The prompt's shape, dtype or ids do not fit, a row is all padding, or an option makes no sense.
    /// </exception>
    public Tensor Generate(Tensor prompt, GenerationOptions? options = null, Tensor? attentionMask = null)
    {
        var steps = GenerateTokens(prompt, options, attentionMask).ToList();
        using var scope = NewDisposeScope();
        var tokens = tensor(steps.SelectMany(step => step).ToArray(), [steps.Count, prompt.size(0)], device: prompt.device);
        return cat([prompt, tokens.t()], 1).MoveToOuterDisposeScope();
    }

    /// <summary>Like <see cref="Generate"/>, but gives the tokens as they come: each step one token per row.</summary>
    /// <param name="prompt">Token ids, int64 [B, T].</param>
    /// <param name="options">How to choose tokens and when to stop.</param>
    /// <param name="attentionMask">[B, T], 1 at tokens and 0 at padding.</param>
    /// <returns>Per step B tokens; the pad token where a row has ended.</returns>
    /// <exception cref="ArgumentException">As for <see cref="Generate"/>, at once.</exception>
    public IEnumerable<long[]> GenerateTokens(Tensor prompt, GenerationOptions? options = null, Tensor? attentionMask = null)
    {
        options ??= new GenerationOptions();
        CheckGeneration(prompt, options, attentionMask);
        return Steps();

        IEnumerable<long[]> Steps()
        {
            using var session = new GenerationSession(this, NextLogits, prompt, options, attentionMask);
            while (session.Next() is { } tokens)
                yield return tokens;
        }
    }

    /// <summary>Like <see cref="GenerateTokens"/>, computing on the thread pool: a user interface stays responsive.</summary>
    /// <param name="prompt">Token ids, int64 [B, T].</param>
    /// <param name="options">How to choose tokens and when to stop.</param>
    /// <param name="attentionMask">[B, T], 1 at tokens and 0 at padding.</param>
    /// <param name="cancellationToken">Stops between two tokens.</param>
    /// <returns>Per step B tokens; the pad token where a row has ended.</returns>
    /// <exception cref="ArgumentException">As for <see cref="Generate"/>, at once.</exception>
    public IAsyncEnumerable<long[]> GenerateAsync(Tensor prompt, GenerationOptions? options = null, Tensor? attentionMask = null,
        CancellationToken cancellationToken = default)
    {
        options ??= new GenerationOptions();
        CheckGeneration(prompt, options, attentionMask);
        return Steps(cancellationToken);

        async IAsyncEnumerable<long[]> Steps([EnumeratorCancellation] CancellationToken token)
        {
            using var session = new GenerationSession(this, NextLogits, prompt, options, attentionMask);
            while (await Task.Run(session.Next, token).ConfigureAwait(false) is { } tokens)
            {
                yield return tokens;
                token.ThrowIfCancellationRequested();
            }
        }
    }

    /// <summary>The logits [B, vocabulary] of what follows the last token of each row.</summary>
    private Tensor NextLogits(Tensor inputIds, Tensor? attentionMask, ModelState state)
    {
        using var scope = NewDisposeScope();
        var padding = attentionMask is null ? null : Padding.From(attentionMask, inputIds);
        Tensor last;
        if (padding is null)
            last = _backbone.forward(inputIds, null, state).select(1, inputIds.size(1) - 1);
        else
            last = _backbone.forward(padding.Pack(inputIds), padding.CuSeqlens, state).squeeze(0)
                .index_select(0, (padding.CuSeqlens.narrow(0, 1, inputIds.size(0)) - 1).to(inputIds.device));
        return Logits(last).MoveToOuterDisposeScope();
    }

    private void CheckGeneration(Tensor prompt, GenerationOptions options, Tensor? attentionMask)
    {
        CheckIds(prompt, nameof(prompt));
        options.Validate(Config.VocabSize);
        if (attentionMask is null)
            return;
        Guard.Shape(attentionMask, "[B, T]", [prompt.size(0), prompt.size(1)]);
        using var scope = NewDisposeScope();
        if (Padding.From(attentionMask, prompt) is { } padding && padding.CuSeqlens.diff().eq(0).any().item<bool>())
            throw new ArgumentException("attentionMask leaves a row of the prompt without any token.", nameof(attentionMask));
    }
}
