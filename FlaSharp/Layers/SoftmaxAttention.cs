using FlaSharp.Interop;
using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Causal softmax attention as in Llama: grouped key and value heads, rotary positions, optionally a sliding window and norms on
/// queries and keys. Parameter names are those of Hugging Face and flash-linear-attention.
/// </summary>
public sealed class SoftmaxAttention : SequenceLayer
{
    [ComponentName(Name = "q_proj")]
    private readonly Linear _qProj;
    [ComponentName(Name = "k_proj")]
    private readonly Linear _kProj;
    [ComponentName(Name = "v_proj")]
    private readonly Linear _vProj;
    [ComponentName(Name = "o_proj")]
    private readonly Linear _oProj;
    [ComponentName(Name = "q_norm")]
    private readonly RMSNorm? _qNorm;
    [ComponentName(Name = "k_norm")]
    private readonly RMSNorm? _kNorm;

    private readonly int _numHeads;
    private readonly int _numKvHeads;
    private readonly int? _window;
    private readonly double? _ropeTheta;
    private readonly double _dropout;

    /// <summary>Makes the layer.</summary>
    /// <param name="hiddenSize">D.</param>
    /// <param name="numHeads">H.</param>
    /// <param name="numKvHeads">Hkv, heads of keys and values, each serving H / Hkv query heads; null for H.</param>
    /// <param name="headDim">K; null for D / H.</param>
    /// <param name="window">How many tokens a token sees, itself included; null for all up to it.</param>
    /// <param name="ropeTheta">The base of the rotary positions; null for no positions.</param>
    /// <param name="qkvBias">Whether the projections to queries, keys and values have a bias.</param>
    /// <param name="outputBias">Whether the output projection has a bias.</param>
    /// <param name="qkNorm">Whether each head's queries and keys are normed, with weights q_norm and k_norm [K].</param>
    /// <param name="normEps">Of those norms.</param>
    /// <param name="dropout">The probability, in training, with which an attention weight is dropped.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    /// <exception cref="ArgumentException">Sizes that do not divide, or an option out of its range.</exception>
    public SoftmaxAttention(long hiddenSize, int numHeads, int? numKvHeads = null, int? headDim = null, int? window = null,
        double? ropeTheta = 10000.0, bool qkvBias = false, bool outputBias = false, bool qkNorm = false,
        double normEps = 1e-5, double dropout = 0.0, Device? device = null, ScalarType? dtype = null)
        : base(nameof(SoftmaxAttention), hiddenSize, device)
    {
        Guard.AtLeast(numHeads, 1);
        (_numHeads, _numKvHeads) = (numHeads, numKvHeads ?? numHeads);
        Guard.Divides(numHeads, _numKvHeads, nameof(numHeads), nameof(numKvHeads));
        if (headDim is null)
            Guard.Divides(hiddenSize, numHeads, nameof(hiddenSize), nameof(numHeads));
        var headSize = headDim ?? hiddenSize / numHeads;
        Guard.AtLeast(headSize, 1, nameof(headDim));
        if (window is not null)
            Guard.AtLeast(window.Value, 1, nameof(window));
        if (ropeTheta is not null && headSize % 2 != 0)
            throw new ArgumentException(
                $"Rotary positions turn pairs of channels, so the head size must be even, but is {headSize}. " +
                "Use ropeTheta: null to go without.",
                nameof(headDim));
        if (ropeTheta <= 0)
            throw new ArgumentOutOfRangeException(nameof(ropeTheta), ropeTheta,
                $"ropeTheta must be above 0 or null, but is {ropeTheta}.");
        if (dropout is not (>= 0 and < 1))
            throw new ArgumentOutOfRangeException(nameof(dropout), dropout, $"dropout must be in [0, 1), but is {dropout}.");
        (_window, _ropeTheta, _dropout) = (window, ropeTheta, dropout);

        _qProj = nn.Linear(hiddenSize, numHeads * headSize, qkvBias, device, dtype);
        _kProj = nn.Linear(hiddenSize, _numKvHeads * headSize, qkvBias, device, dtype);
        _vProj = nn.Linear(hiddenSize, _numKvHeads * headSize, qkvBias, device, dtype);
        _oProj = nn.Linear(numHeads * headSize, hiddenSize, outputBias, device, dtype);
        if (qkNorm)
        {
            _qNorm = new RMSNorm(headSize, normEps, device: device, dtype: dtype);
            _kNorm = new RMSNorm(headSize, normEps, device: device, dtype: dtype);
        }
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override void ResetParameters()
    {
        foreach (var linear in new[] { _qProj, _kProj, _vProj, _oProj })
            linear.ResetParameters();
        foreach (var norm in new[] { _qNorm, _kNorm })
            if (norm?.Weight is { } weight)
                nn.init.ones_(weight);
    }

    private protected override Tensor InputWeight => _qProj.weight;

    private bool DropsWeights => training && _dropout > 0;

    private protected override Tensor Mix(Tensor x, Tensor? cuSeqlens, Sequences sequences, LayerState? state)
    {
        var q = Heads(_qProj.forward(x), _numHeads);
        var k = Heads(_kProj.forward(x), _numKvHeads);
        var v = Heads(_vProj.forward(x), _numKvHeads);
        if (_qNorm is not null)
            (q, k) = (_qNorm.forward(q), _kNorm!.forward(k));
        if (state?.KeyValues is { IsEmpty: false } cache && !DropsWeights && cache.CanStep(sequences, q, k, v))
            return _oProj.forward(cache.Step(q, k, v, sequences, _ropeTheta).flatten(2));
        if (_ropeTheta is { } theta)
        {
            var positions = Positions(sequences, state, x.device);
            (q, k) = (FlaOps.RotaryEmbedding(q, positions, theta), FlaOps.RotaryEmbedding(k, positions, theta));
        }
        return _oProj.forward(Attend(q, k, v, cuSeqlens, sequences, state).flatten(2));
    }

    private Tensor Attend(Tensor q, Tensor k, Tensor v, Tensor? cuSeqlens, Sequences sequences, LayerState? state)
    {
        var cache = state is null ? null : state.KeyValues ??= new KeyValueCache(sequences.Count, _window);
        if (cache is null || cache.IsEmpty)
        {
            cache?.Append(k, v, sequences, areRead: false);
            return Softmax(q, k, v, cuSeqlens);
        }

        cache.Append(k, v, sequences, areRead: true);
        if (!sequences.IsPacked && cache.IsRectangular)
        {
            var (keys, values) = cache.All();
            return Softmax(q, keys, values);
        }
        // Rows of different lengths, one by one: their keys lie where they are, and none is copied.
        var outputs = new List<Tensor>(sequences.Count);
        for (var b = 0; b < sequences.Count; b++)
        {
            if (sequences.Length(b) == 0)
                continue;
            var queries = sequences.IsPacked ? q.narrow(1, sequences.Start(b), sequences.Length(b)) : q.narrow(0, b, 1);
            var (keys, values) = cache.Row(b);
            outputs.Add(Softmax(queries, keys, values));
        }
        return cat(outputs, sequences.IsPacked ? 1 : 0);
    }

    private Tensor Softmax(Tensor q, Tensor k, Tensor v, Tensor? cuSeqlens = null) =>
        FlaOps.Attention(q, k, v, window: _window, cuSeqlensQ: cuSeqlens, cuSeqlensK: cuSeqlens,
            dropout: DropsWeights ? _dropout : 0);

    /// <summary>int64 [T] or [B, T]: how many tokens of its row come before each token.</summary>
    private static Tensor Positions(Sequences sequences, LayerState? state, Device device)
    {
        var starts = Enumerable.Range(0, sequences.Count).Select(s => state?.Length(s) ?? 0).ToArray();
        if (!sequences.IsPacked && starts.All(start => start == starts[0]))
            return arange(starts[0], starts[0] + sequences.MaxLength, ScalarType.Int64, device);

        var positions = new long[sequences.Tokens];
        for (var s = 0; s < sequences.Count; s++)
            for (var i = sequences.Start(s); i < sequences.End(s); i++)
                positions[i] = starts[s] + i - sequences.Start(s);
        return tensor(positions, device: device).view(sequences.IsPacked ? 1 : sequences.Count, -1);
    }

    /// <summary>[B, T, H * K] to [B, T, H, K].</summary>
    private static Tensor Heads(Tensor x, int heads) => x.view(x.size(0), x.size(1), heads, -1);
}
