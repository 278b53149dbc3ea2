using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// Chooses the next token of each row. Draws on the CPU, so that a seed gives the same text on every device; the likeliest token
/// is found where the logits are.
/// </summary>
internal sealed class Sampler : IDisposable
{
    private readonly GenerationOptions _options;
    private readonly Generator? _generator;
    private readonly Tensor? _seen; // bool [B, vocabulary]: the tokens that a row has

    /// <param name="options">How to choose.</param>
    /// <param name="prompt">int64 [B, T].</param>
    /// <param name="attentionMask">[B, T], 0 at padding, which is not text.</param>
    /// <param name="vocabSize">Number of tokens.</param>
    public Sampler(GenerationOptions options, Tensor prompt, Tensor? attentionMask, int vocabSize)
    {
        _options = options;
        if (options is { DoSample: true, Seed: { } seed })
            _generator = new Generator(unchecked((ulong)seed));
        if (options.RepetitionPenalty == 1)
            return;
        using var scope = NewDisposeScope();
        var present = attentionMask is null ? ones_like(prompt) : attentionMask.to(ScalarType.Int64);
        _seen = zeros([prompt.size(0), vocabSize], ScalarType.Int64).scatter_add(1, prompt.cpu(), present.cpu()).gt(0)
            .DetachFromDisposeScope();
    }

    /// <summary>Takes logits [B, vocabulary]; gives one token per row.</summary>
    public long[] Next(Tensor logits)
    {
        using var scope = NewDisposeScope();
        if (!_options.DoSample && _seen is null)
            return Likeliest(logits.detach());
        var scores = logits.detach().cpu().to(ScalarType.Float32);
        if (scores.isnan().any().item<bool>())
            throw NotANumber();
        if (_seen is not null)
        {
            var penalty = _options.RepetitionPenalty;
            scores = where(_seen, where(scores.lt(0), scores * penalty, scores / penalty), scores);
        }
        var tokens = _options.DoSample ? Draw(scores) : scores.argmax(-1, keepdim: true);
        _seen?.scatter_(1, tokens, ones_like(tokens, ScalarType.Bool));
        return tokens.data<long>().ToArray();
    }

    public void Dispose()
    {
        _generator?.Dispose();
        _seen?.Dispose();
    }

    private static long[] Likeliest(Tensor scores)
    {
        var (values, tokens) = scores.max(-1);
        var likeliest = tokens.masked_fill_(values.isnan(), -1).cpu().data<long>().ToArray(); // the largest is NaN if any is
        return likeliest.Contains(-1) ? throw NotANumber() : likeliest;
    }

    private static InvalidOperationException NotANumber() => new("The model's logits hold NaN: check its weights and dtype.");

    private Tensor Draw(Tensor scores)
    {
        scores = scores / _options.Temperature;
        if (_options.TopK is { } topK && topK < scores.size(-1))
        {
            var least = scores.topk(topK, -1).values.narrow(-1, topK - 1, 1);
            scores = scores.masked_fill(scores.lt(least), double.NegativeInfinity);
        }
        if (_options.TopP < 1)
        {
            var (sorted, order) = scores.sort(-1, descending: true);
            var probabilities = sorted.softmax(-1);
            var before = probabilities.cumsum(-1) - probabilities; // of the likelier tokens; 0 for the first, which stays
            var left = sorted.masked_fill(before.ge(_options.TopP), double.NegativeInfinity);
            scores = left.scatter(-1, order, left);
        }
        var weights = scores.softmax(-1);
        if (_options.MinP > 0)
            weights = weights.masked_fill(weights.lt(weights.amax([-1], keepdim: true) * _options.MinP), 0);
        return weights.multinomial(1, replacement: false, _generator);
    }
}
