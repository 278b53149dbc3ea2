using FlaSharp.Interop;
using FlaSharp.Modules;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using TorchSharp.Utils;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Mamba (Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023): a gated block around a short
/// convolution and a selective scan. Parameter names and defaults are those of state-spaces/mamba and Hugging Face.
/// </summary>
/// <remarks>
/// On a CUDA GPU the convolution and the scan, with its gate, run on kernels in float32, float16 and bfloat16, forward and
/// backward; both read their parts of in_proj's output where they lie, and write their gradients into that of the whole. Under
/// <c>torch.no_grad()</c> the states of a <see cref="LayerState"/> are written over in place. Runs are bitwise repeatable, states
/// and sums are float32. See <see cref="FlaOps.SelectiveScan"/> and <see cref="FlaOps.CausalConv1d"/>.
/// </remarks>
public sealed class Mamba : SequenceLayer
{
    private const string DecayName = "A_log";
    private const string SkipName = "D";
    private const string Recurrent = "recurrent";
    private const string Conv = "conv";

    [ComponentName(Name = DecayName)]
    private readonly Parameter _aLog;
    [ComponentName(Name = SkipName)]
    private readonly Parameter _d;
    [ComponentName(Name = "in_proj")]
    private readonly Linear _inProj;
    [ComponentName(Name = "conv1d")]
    private readonly ShortConvolution _conv;
    [ComponentName(Name = "x_proj")]
    private readonly Linear _xProj;
    [ComponentName(Name = "dt_proj")]
    private readonly MixedPrecisionLinear _dtProj;
    [ComponentName(Name = "out_proj")]
    private readonly Linear _outProj;

    private readonly long _innerSize;
    private readonly int _rank;
    private readonly int _stateSize;
    private readonly (double scale, double min, double max, double floor, bool random) _timeStep;

    /// <summary>Makes the layer.</summary>
    /// <param name="hiddenSize">D.</param>
    /// <param name="stateSize">N, the state per channel.</param>
    /// <param name="convKernel">W of the short convolution.</param>
    /// <param name="expand">E in units of D.</param>
    /// <param name="intermediateSize">E, the inner width; null for expand * D.</param>
    /// <param name="timeStepRank">The rank of the projection to the step sizes; null for D / 16, rounded up.</param>
    /// <param name="timeStepScale">Scale of that projection's initial weights.</param>
    /// <param name="timeStepMin">The smallest initial step size.</param>
    /// <param name="timeStepMax">The largest initial step size.</param>
    /// <param name="timeStepFloor">A lower bound of the initial step sizes.</param>
    /// <param name="timeStepInit">"random" or "constant": that projection's initial weights.</param>
    /// <param name="useConvBias">Whether the convolution has a bias.</param>
    /// <param name="useBias">Whether in_proj and out_proj have a bias.</param>
    /// <param name="activation">After the convolution: "silu", also called "swish".</param>
    /// <param name="keepFp32Parameters">Whether A_log, D and dt_proj.bias stay float32 in a half-precision layer.</param>
    /// <param name="device">Where to make the parameters.</param>
    /// <param name="dtype">Of the parameters.</param>
    /// <exception cref="ArgumentException">A size below 1, or an unknown option.</exception>
    public Mamba(long hiddenSize, int stateSize = 16, int convKernel = 4, int expand = 2, long? intermediateSize = null,
        int? timeStepRank = null, double timeStepScale = 1.0, double timeStepMin = 0.001, double timeStepMax = 0.1,
        double timeStepFloor = 1e-4, string timeStepInit = "random", bool useConvBias = true, bool useBias = false,
        string activation = "silu", bool keepFp32Parameters = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(Mamba), hiddenSize, device, keepFp32Parameters ? [DecayName, SkipName] : [])
    {
        Guard.AtLeast(stateSize, 1);
        Guard.AtLeast(expand, 1);
        _innerSize = intermediateSize ?? expand * hiddenSize;
        Guard.AtLeast(_innerSize, 1, nameof(intermediateSize));
        _rank = timeStepRank ?? (int)((hiddenSize + 15) / 16);
        Guard.AtLeast(_rank, 1, nameof(timeStepRank));
        StepSizeInit.Check(timeStepMin, timeStepMax, timeStepFloor);
        Guard.OneOf(timeStepInit, ["random", "constant"]);
        Guard.OneOf(activation, ["silu", "swish"]);
        _stateSize = stateSize;
        _timeStep = (timeStepScale, timeStepMin, timeStepMax, timeStepFloor, timeStepInit == "random");

        _aLog = MakeParameter([_innerSize, stateSize], device, DtypeOf(DecayName, dtype));
        _d = MakeParameter([_innerSize], device, DtypeOf(SkipName, dtype));
        _inProj = nn.Linear(hiddenSize, 2 * _innerSize, useBias, device, dtype);
        _conv = new ShortConvolution(_innerSize, convKernel, useConvBias, activation, device, dtype);
        _xProj = nn.Linear(_innerSize, _rank + 2 * stateSize, false, device, dtype);
        _dtProj = new MixedPrecisionLinear(_rank, _innerSize, fp32Weight: false, fp32Bias: keepFp32Parameters, device, dtype);
        _outProj = nn.Linear(_innerSize, hiddenSize, useBias, device, dtype);
        ResetStateSpace();
        RegisterComponents();
    }

    /// <inheritdoc/>
    public override void ResetParameters()
    {
        _inProj.ResetParameters();
        _conv.ResetParameters();
        _xProj.ResetParameters();
        _outProj.ResetParameters();
        ResetStateSpace();
    }

    private protected override Tensor InputWeight => _inProj.weight;

    private protected override Tensor Mix(Tensor x, Tensor? cuSeqlens, Sequences sequences, LayerState? state)
    {
        var uz = SplitFunction.Split(_inProj.forward(x), [_innerSize], [_innerSize]);
        var pastInputs = state?[Conv];
        var (u, inputs) = _conv.forward(
            uz[0], pastInputs, state is not null, cuSeqlens, updateState: LayerState.CanUpdate(pastInputs));

        var selected = _xProj.forward(u).split([_rank, _stateSize, _stateSize], -1);
        var delta = nn.functional.linear(selected[0], _dtProj.Weight);
        var past = state?[Recurrent];
        var (y, finalState) = FlaOps.SelectiveScan(
            u, delta, _aLog.InDtype(ScalarType.Float32), selected[1], selected[2],
            _d.InDtype(ScalarType.Float32), uz[1], _dtProj.Bias.InDtype(ScalarType.Float32), deltaSoftplus: true,
            past, state is not null, cuSeqlens, updateState: LayerState.CanUpdate(past), aIsLog: true);
        if (state is not null)
            (state[Recurrent], state[Conv]) = (finalState, inputs);
        return _outProj.forward(y);
    }

    /// <summary>A = -(1, ..., N) for each channel, D = 1, and step sizes between the two bounds.</summary>
    private void ResetStateSpace()
    {
        using var scope = NewDisposeScope();
        using var noGrad = no_grad();
        _aLog.copy_(arange(1, _stateSize + 1, ScalarType.Float32).log());
        nn.init.ones_(_d);
        var deviation = _timeStep.scale / Math.Sqrt(_rank);
        if (_timeStep.random)
            nn.init.uniform_(_dtProj.Weight, -deviation, deviation);
        else
            nn.init.constant_(_dtProj.Weight, deviation);
        StepSizeInit.Fill(_dtProj.Bias, _timeStep.min, _timeStep.max, _timeStep.floor);
    }
}
