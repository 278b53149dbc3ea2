using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>One generation under way: reads the prompt once, then gives the tokens one by one.</summary>
internal sealed class GenerationSession : IDisposable
{
    private readonly Func<Tensor, Tensor?, ModelState, Tensor> _nextLogits;
    private readonly Tensor _prompt;
    private readonly Tensor? _attentionMask;
    private readonly ModelState _state;
    private readonly Sampler _sampler;
    private readonly HashSet<long> _eos;
    private readonly long _pad;
    private readonly int _limit;
    private readonly bool[] _ended;
    private long[]? _last;
    private int _count;

    /// <param name="model">Whose configuration and state are used.</param>
    /// <param name="nextLogits">Ids [B, T], mask and state to logits [B, vocabulary] after the last token of each row.</param>
    /// <param name="prompt">int64 [B, T].</param>
    /// <param name="options">Valid options.</param>
    /// <param name="attentionMask">[B, T], or none.</param>
    public GenerationSession(
        CausalLM model, Func<Tensor, Tensor?, ModelState, Tensor> nextLogits, Tensor prompt, GenerationOptions options,
        Tensor? attentionMask)
    {
        (_nextLogits, _limit) = (nextLogits, options.MaxNewTokens);
        _prompt = prompt.detach().DetachFromDisposeScope();
        _attentionMask = attentionMask?.detach().DetachFromDisposeScope();
        _state = model.NewState();
        _sampler = new Sampler(options, prompt, attentionMask, model.Config.VocabSize);
        var eos = options.EosTokenIds ?? model.Config.EosTokenIds ?? [];
        _eos = [.. eos.Select(id => (long)id)];
        _pad = options.PadTokenId ?? model.Config.PadTokenId ?? (eos.Count > 0 ? eos[0] : 0);
        _ended = new bool[prompt.size(0)];
    }

    /// <summary>The next token of each row, the pad token where the row has ended; null at the end of all.</summary>
    public long[]? Next()
    {
        if (_count == _limit || _ended.All(ended => ended))
            return null;
        using var scope = NewDisposeScope();
        using var inference = inference_mode(); // views and products cost less than under no_grad
        var logits = _last is null
            ? _nextLogits(_prompt, _attentionMask, _state)
            : _nextLogits(tensor(_last, [_last.Length, 1], device: _prompt.device), null, _state);
        var tokens = _sampler.Next(logits);
        for (var row = 0; row < tokens.Length; row++)
        {
            if (_ended[row])
                tokens[row] = _pad;
            _ended[row] |= _eos.Contains(tokens[row]);
        }
        _count++;
        _last = tokens;
        return [.. tokens];
    }

    public void Dispose()
    {
        _prompt.Dispose();
        _attentionMask?.Dispose();
        _state.Dispose();
        _sampler.Dispose();
    }
}
