using FlaSharp.Interop;
using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Mamba-2 (Dao and Gu, "Transformers are SSMs", 2024): one projection, one short convolution, a state space with a scalar decay
/// per head, a gated norm. Parameter names and defaults are those of state-spaces/mamba and Hugging Face.
/// </summary>
/// <remarks>
/// On a CUDA GPU the convolution and the norm run on kernels in float32, float16 and bfloat16, forward and backward, and the
/// state space in float16 and bfloat16 (head and state sizes up to 256); in float32 only a few tokens without gradients do, and
/// longer sequences are libtorch's products over chunks, which keep all digits. All read their parts of in_proj's output where
/// they lie, and write their gradients into that of the whole. Under <c>torch.no_grad()</c> a few tokens write over the states of
/// a <see cref="LayerState"/> in place. Runs are bitwise repeatable, states and sums are float32. See <see cref="FlaOps.Ssd"/>,
/// <see cref="FlaOps.CausalConv1d"/> and <see cref="FlaOps.GatedRmsNorm"/>.
/// </remarks>
public sealed class Mamba2 : SequenceLayer
{
    private const string DecayName = "A_log";
    private const string SkipName = "D";
    private const string StepBiasName = "dt_bias";
    private const string Recurrent = "recurrent";
    private const string Conv = "conv";

    [ComponentName(Name = StepBiasName)]
    private readonly Parameter _dtBias;
    [ComponentName(Name = DecayName)]
    private readonly Parameter _aLog;
    [ComponentName(Name = SkipName)]
    private readonly Parameter _d;
    [ComponentName(Name = "in_proj")]
    private readonly Linear _inProj;
    [ComponentName(Name = "conv1d")]
    private readonly ShortConvolution _conv;
    [ComponentName(Name = "norm")]
    private readonly GatedRMSNorm? _norm;
    [ComponentName(Name = "out_proj")]
    private readonly Linear _outProj;

    private readonly long _innerSize;
    private readonly int _numHeads;
    private readonly int _headDim;
    private readonly int _nGroups;
    private readonly int _stateSize;
    private readonly bool _dHasHeadDim;
    private readonly (double min, double max) _aInitRange;
    private readonly (double min, double max, double floor) _timeStep;
    private readonly (double min, double max)? _timeStepLimit;

    /// <summary>Makes the layer.</summary>
    /// <param name="hiddenSize">D.</param>
    /// <param name="headDim">P, the channels of a head.</param>
    /// <param name="stateSize">N, the state per channel.</param>
    /// <param name="expand">E, the inner width, in units of D.</param>
    /// <param name="numHeads">H; null for E / P. H * P must be E.</param>
    /// <param name="nGroups">G, the groups of heads that share B and C.</param>
    /// <param name="convKernel">W of the short convolution.</param>
    /// <param name="aInitRange">The initial decay rates are uniform between these; null for (1, 16).</param>
    /// <param name="timeStepMin">The smallest initial step size.</param>
    /// <param name="timeStepMax">The largest initial step size.</param>
    /// <param name="timeStepFloor">A lower bound of the initial step sizes.</param>
    /// <param name="timeStepLimit">Bounds of the step sizes in every pass; null for none.</param>
    /// <param name="dHasHeadDim">Whether the skip weight D is [E], one per channel, and not [H].</param>
    /// <param name="rmsNorm">Whether the gated output is normed; otherwise it is gated only.</param>
    /// <param name="normBeforeGate">Whether the norm precedes the gate, norm(y) * silu(z), and not norm(y * silu(z)).</param>
    /// <param name="normEps">Of that norm. It is taken over each of the G groups.</param>
    /// <param name="useConvBias">Whether the convolution has a bias.</param>
    /// <param name="useBias">Whether in_proj and out_proj have a bias.</param>
    /// <param name="activation">After the convolution: "silu", also called "swish".</param>
    /// <param name="keepFp32Parameters">Whether A_log, D and dt_bias stay float32 in a half-precision layer.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    /// <exception cref="ArgumentException">Sizes that do not divide, or an unknown option.</exception>
    public Mamba2(long hiddenSize, int headDim = 64, int stateSize = 128, int expand = 2, int? numHeads = null, int nGroups = 1,
        int convKernel = 4, (double min, double max)? aInitRange = null, double timeStepMin = 0.001, double timeStepMax = 0.1,
        double timeStepFloor = 1e-4, (double min, double max)? timeStepLimit = null, bool dHasHeadDim = false,
        bool rmsNorm = true, bool normBeforeGate = false, double normEps = 1e-5, bool useConvBias = true, bool useBias = false,
        string activation = "silu", bool keepFp32Parameters = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(Mamba2), hiddenSize, device, keepFp32Parameters ? [DecayName, SkipName, StepBiasName] : [])
    {
        Guard.AtLeast(headDim, 1);
        Guard.AtLeast(stateSize, 1);
        Guard.AtLeast(expand, 1);
        _innerSize = expand * hiddenSize;
        Guard.Divides(_innerSize, headDim, "expand * hiddenSize", nameof(headDim));
        _numHeads = numHeads ?? (int)(_innerSize / headDim);
        if (_numHeads * headDim != _innerSize)
            throw new ArgumentException(
                $"numHeads * headDim must be expand * hiddenSize, but {numHeads} * {headDim} " +
                $"is not {expand} * {hiddenSize} = {_innerSize}.",
                nameof(numHeads));
        Guard.Divides(_numHeads, nGroups, nameof(numHeads), nameof(nGroups));
        StepSizeInit.Check(timeStepMin, timeStepMax, timeStepFloor);
        Guard.OneOf(activation, ["silu", "swish"]);
        _aInitRange = aInitRange ?? (1, 16);
        if (!(_aInitRange.min > 0 && _aInitRange.max >= _aInitRange.min))
            throw new ArgumentException($"aInitRange must be two rates above 0 in ascending order, but is {_aInitRange}.",
                nameof(aInitRange));
        (_headDim, _nGroups, _stateSize, _dHasHeadDim) = (headDim, nGroups, stateSize, dHasHeadDim);
        (_timeStep, _timeStepLimit) = ((timeStepMin, timeStepMax, timeStepFloor), timeStepLimit);

        _dtBias = MakeParameter([_numHeads], device, DtypeOf(StepBiasName, dtype));
        _aLog = MakeParameter([_numHeads], device, DtypeOf(DecayName, dtype));
        _d = MakeParameter([dHasHeadDim ? _innerSize : _numHeads], device, DtypeOf(SkipName, dtype));
        _inProj = nn.Linear(hiddenSize, _innerSize + ConvSize + _numHeads, useBias, device, dtype);
        _conv = new ShortConvolution(ConvSize, convKernel, useConvBias, activation, device, dtype);
        // Per group, as state-spaces/mamba does. Hugging Face's module norms all of E, a known fault: transformers PR 40861.
        if (rmsNorm)
            _norm = new GatedRMSNorm(_innerSize, normEps, normBeforeGate: normBeforeGate, groupSize: _innerSize / nGroups,
                device: device, dtype: dtype);
        _outProj = nn.Linear(_innerSize, hiddenSize, useBias, device, dtype);
        ResetStateSpace();
        RegisterComponents();
    }

    /// <summary>The channels that pass the convolution: x, B and C side by side.</summary>
    private long ConvSize => _innerSize + 2L * _nGroups * _stateSize;

    /// <inheritdoc/>
    public override void ResetParameters()
    {
        _inProj.ResetParameters();
        _conv.ResetParameters();
        _outProj.ResetParameters();
        if (_norm?.Weight is { } weight)
            nn.init.ones_(weight);
        ResetStateSpace();
    }

    private protected override Tensor InputWeight => _inProj.weight;

    private protected override Tensor Mix(Tensor x, Tensor? cuSeqlens, Sequences sequences, LayerState? state)
    {
        // Without a norm the state space takes the gate, head by head.
        var projected = SplitFunction.Split(
            _inProj.forward(x), _norm is null ? [_numHeads, _headDim] : [_innerSize], [ConvSize], [_numHeads]);
        var (z, dt) = (projected[0], projected[2]);
        var pastInputs = state?[Conv];
        var (convolved, inputs) = _conv.forward(
            projected[1], pastInputs, state is not null, cuSeqlens, updateState: LayerState.CanUpdate(pastInputs));
        var xbc = SplitFunction.Split(convolved, [_numHeads, _headDim], [_nGroups, _stateSize], [_nGroups, _stateSize]);

        var (d, past) = (_d.InDtype(ScalarType.Float32), state?[Recurrent]);
        // In place where a kernel does that.
        var updateState = x.device_type == DeviceType.CUDA && LayerState.CanUpdate(past);
        var (y, finalState) = FlaOps.Ssd(
            xbc[0], dt, _aLog.InDtype(ScalarType.Float32), xbc[1], xbc[2],
            _dHasHeadDim ? d.view(_numHeads, _headDim) : d, _norm is null ? z : null,
            _dtBias.InDtype(ScalarType.Float32), dtSoftplus: true, _timeStepLimit, past, state is not null, cuSeqlens, updateState,
            aIsLog: true);
        if (state is not null)
            (state[Recurrent], state[Conv]) = (finalState, inputs);

        y = y.flatten(2);
        return _outProj.forward(_norm is null ? y : _norm.forward(y, z));
    }

    /// <summary>Decay rates and step sizes between their bounds, D = 1.</summary>
    private void ResetStateSpace()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        var rates = empty(_aLog.shape, ScalarType.Float32, _aLog.device).uniform_(_aInitRange.min, _aInitRange.max);
        _aLog.copy_(rates.log());
        nn.init.ones_(_d);
        StepSizeInit.Fill(_dtBias, _timeStep.min, _timeStep.max, _timeStep.floor);
    }
}
