using FlaSharp.Interop;
using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Gated linear attention (Yang et al., "Gated linear attention transformers with hardware-efficient training", 2023): linear
/// attention whose state decays by a gate per key channel and token. Parameter names and defaults are those of
/// flash-linear-attention, so its checkpoints fit.
/// </summary>
public sealed class GatedLinearAttention : SequenceLayer
{
    private const string Recurrent = "recurrent";
    private const string QConv = "q_conv";
    private const string KConv = "k_conv";
    private const string VConv = "v_conv";

    [ComponentName(Name = "q_proj")]
    private readonly Linear _qProj;
    [ComponentName(Name = "k_proj")]
    private readonly Linear _kProj;
    [ComponentName(Name = "v_proj")]
    private readonly Linear _vProj;
    [ComponentName(Name = "g_proj")]
    private readonly Linear? _gProj;
    [ComponentName(Name = "q_conv1d")]
    private readonly ShortConvolution? _qConv;
    [ComponentName(Name = "k_conv1d")]
    private readonly ShortConvolution? _kConv;
    [ComponentName(Name = "v_conv1d")]
    private readonly ShortConvolution? _vConv;
    [ComponentName(Name = "gk_proj")]
    private readonly DecayGate _gkProj;
    [ComponentName(Name = "g_norm_swish_gate")]
    private readonly GatedRMSNorm? _gatedNorm;
    [ComponentName(Name = "g_norm")]
    private readonly RMSNorm? _norm;
    [ComponentName(Name = "o_proj")]
    private readonly Linear _oProj;

    private readonly Func<Tensor, Tensor>? _featureMap;
    private readonly Func<Tensor, Tensor> _gateFn;
    private readonly int _numHeads;
    private readonly int _numKvHeads;

    /// <summary>Makes the layer.</summary>
    /// <param name="hiddenSize">D.</param>
    /// <param name="numHeads">H.</param>
    /// <param name="expandK">Width of all keys together in units of D; K is 1/H of it.</param>
    /// <param name="expandV">Width of all values together in units of D; V is 1/H of it.</param>
    /// <param name="mode">Which algorithm computes it; all give the same result.</param>
    /// <param name="numKvHeads">Hkv, heads of keys, values and decays, each serving H / Hkv query heads; null for H.</param>
    /// <param name="featureMap">
    /// Applied to queries and keys: relu, sigmoid, logsigmoid, silu, swish, sqrelu, gelu or elu (which is elu + 1); null
    /// for none.
    /// </param>
    /// <param name="useShortConv">Whether queries, keys and values pass a short causal convolution with SiLU.</param>
    /// <param name="convSize">W of that convolution.</param>
    /// <param name="convBias">Whether it has a bias.</param>
    /// <param name="useOutputGate">Whether the normed output is multiplied by a gate made from x.</param>
    /// <param name="gateFn">The function on that gate: one of the feature maps.</param>
    /// <param name="gateLogitNormalizer">The log decays are divided by it: the larger, the longer the memory.</param>
    /// <param name="gateLowRankDim">The rank of the projection to the decays.</param>
    /// <param name="clampMin">A lower bound of the log decays; null for none.</param>
    /// <param name="normEps">Of the norm of each output head.</param>
    /// <param name="elementwiseAffine">Whether that norm has weights.</param>
    /// <param name="fuseNorm">
    /// Whether norm and swish gate are one module, named g_norm_swish_gate in the state dict, and not g_norm. The
    /// result is the same.
    /// </param>
    /// <param name="keepFp32Parameters">Whether the projection to the decays stays float32 in a half-precision layer.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    /// <exception cref="ArgumentException">Sizes that do not divide, or an unknown option.</exception>
    public GatedLinearAttention(long hiddenSize, int numHeads = 4, double expandK = 0.5, double expandV = 1.0,
        LinearAttentionMode mode = LinearAttentionMode.Auto, int? numKvHeads = null, string? featureMap = null,
        bool useShortConv = false, int convSize = 4, bool convBias = false, bool useOutputGate = true, string gateFn = "swish",
        double gateLogitNormalizer = 16, int gateLowRankDim = 16, double? clampMin = null, double normEps = 1e-5,
        bool elementwiseAffine = true, bool fuseNorm = true, bool keepFp32Parameters = true, Device? device = null,
        ScalarType? dtype = null)
        : base(nameof(GatedLinearAttention), hiddenSize, device)
    {
        Guard.AtLeast(numHeads, 1);
        Guard.AtLeast(gateLowRankDim, 1);
        if (!Enum.IsDefined(mode))
            throw new ArgumentOutOfRangeException(nameof(mode), mode, "mode must be one of LinearAttentionMode.");
        if (gateLogitNormalizer <= 0)
            throw new ArgumentOutOfRangeException(nameof(gateLogitNormalizer), gateLogitNormalizer,
                $"gateLogitNormalizer must be above 0, or the decays would grow, but is {gateLogitNormalizer}.");
        if (clampMin > 0)
            throw new ArgumentOutOfRangeException(nameof(clampMin), clampMin,
                $"clampMin bounds log decays, which are at most 0, but is {clampMin}.");
        var keySize = (long)(hiddenSize * expandK);
        var valueSize = (long)(hiddenSize * expandV);
        Guard.AtLeast(keySize, 1, "hiddenSize * expandK");
        Guard.AtLeast(valueSize, 1, "hiddenSize * expandV");
        Guard.Divides(keySize, numHeads, "hiddenSize * expandK", nameof(numHeads));
        Guard.Divides(valueSize, numHeads, "hiddenSize * expandV", nameof(numHeads));
        (_numHeads, _numKvHeads) = (numHeads, numKvHeads ?? numHeads);
        Guard.Divides(numHeads, _numKvHeads, nameof(numHeads), nameof(numKvHeads));

        Mode = mode;
        _featureMap = featureMap is null ? null : FeatureMap.Named(featureMap, nameof(featureMap));
        _gateFn = FeatureMap.Named(gateFn, nameof(gateFn));

        var groups = numHeads / _numKvHeads;
        _qProj = nn.Linear(hiddenSize, keySize, false, device, dtype);
        _kProj = nn.Linear(hiddenSize, keySize / groups, false, device, dtype);
        _vProj = nn.Linear(hiddenSize, valueSize / groups, false, device, dtype);
        if (useOutputGate)
            _gProj = nn.Linear(hiddenSize, valueSize, false, device, dtype);
        if (useShortConv)
        {
            _qConv = new ShortConvolution(keySize, convSize, convBias, "silu", device, dtype);
            _kConv = new ShortConvolution(keySize / groups, convSize, convBias, "silu", device, dtype);
            _vConv = new ShortConvolution(valueSize / groups, convSize, convBias, "silu", device, dtype);
        }
        _gkProj = new DecayGate(
            hiddenSize, gateLowRankDim, keySize / groups, gateLogitNormalizer, clampMin, keepFp32Parameters, device, dtype);
        if (useOutputGate && fuseNorm && gateFn is "swish" or "silu")
            _gatedNorm = new GatedRMSNorm(valueSize / numHeads, normEps, elementwiseAffine, device: device, dtype: dtype);
        else
            _norm = new RMSNorm(valueSize / numHeads, normEps, elementwiseAffine, device, dtype);
        _oProj = nn.Linear(valueSize, hiddenSize, false, device, dtype);
        RegisterComponents();
    }
    /// <summary>The algorithm asked for.</summary>
    public LinearAttentionMode Mode { get; }

    /// <inheritdoc/>
    public override void ResetParameters()
    {
        foreach (var linear in new[] { _qProj, _kProj, _vProj, _gProj, _oProj })
            linear?.ResetParameters();
        foreach (var convolution in new[] { _qConv, _kConv, _vConv })
            convolution?.ResetParameters();
        _gkProj.ResetParameters();
        if ((_gatedNorm?.Weight ?? _norm?.Weight) is { } weight)
            nn.init.ones_(weight);
    }

    private protected override Tensor InputWeight => _qProj.weight;

    private protected override Tensor Mix(Tensor x, Tensor? cuSeqlens, Sequences sequences, LayerState? state)
    {
        var (q, qInputs) = Project(_qProj, _qConv, QConv);
        var (k, kInputs) = Project(_kProj, _kConv, KConv);
        var (v, vInputs) = Project(_vProj, _vConv, VConv);
        if (_featureMap is not null)
            (q, k) = (_featureMap(q), _featureMap(k));
        var g = _gkProj.forward(x);

        var past = state?[Recurrent];
        var (output, finalState) = FlaOps.Gla(
            Heads(q, _numHeads), Heads(k, _numKvHeads), Heads(v, _numKvHeads), Heads(g, _numKvHeads), Mode,
            initialState: past, outputFinalState: state is not null, cuSeqlens: cuSeqlens,
            updateState: LayerState.CanUpdate(past));
        if (state is not null)
            (state[Recurrent], state[QConv], state[KConv], state[VConv]) = (finalState, qInputs, kInputs, vInputs);

        if (_gatedNorm is not null)
            output = _gatedNorm.forward(output, Heads(_gProj!.forward(x), _numHeads));
        else
            output = _norm!.forward(output);
        output = output.flatten(2);
        if (_gatedNorm is null && _gProj is not null)
            output *= _gateFn(_gProj.forward(x));
        return _oProj.forward(output);

        (Tensor, Tensor?) Project(Linear projection, ShortConvolution? convolution, string name)
        {
            var y = projection.forward(x);
            var inputs = state?[name];
            return convolution is null
                ? (y, null)
                : convolution.forward(y, inputs, state is not null, cuSeqlens, updateState: LayerState.CanUpdate(inputs));
        }
    }

    /// <summary>[B, T, H * K] to [B, T, H, K].</summary>
    private static Tensor Heads(Tensor x, int heads) => x.view(x.size(0), x.size(1), heads, -1);
}
