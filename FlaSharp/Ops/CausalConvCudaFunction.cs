using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Conv;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The causal convolution on a GPU: <see cref="CausalConvKernels"/> as an operation of autograd.</summary>
internal sealed class CausalConvCudaFunction : FlaFunction
{
    private readonly Sequences _sequences;
    private readonly bool _silu, _outputFinalState, _updateState;

    private CausalConvCudaFunction(Sequences sequences, bool silu, bool outputFinalState, bool updateState) =>
        (_sequences, _silu, _outputFinalState, _updateState) = (sequences, silu, outputFinalState, updateState);

    /// <summary>
    /// Arguments as those of <see cref="FlaOps.CausalConv1d"/>, checked; weight [E, W] or [E, 1, W], W at most
    /// <see cref="CausalConvTile.MaxWidth"/>.
    /// </summary>
    public static (Tensor output, Tensor? finalState) Run(Sequences sequences, Tensor x, Tensor weight, Tensor? bias, bool silu,
        Tensor? initialState, bool outputFinalState, bool updateState = false)
    {
        var function = new CausalConvCudaFunction(sequences, silu, outputFinalState, updateState);
        var outputs = function.Run(x, weight, bias, initialState);
        return (outputs[0]!, updateState && outputFinalState ? initialState : outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (x, weight, bias) = (inputs[0]!.DenseChannels(), inputs[1]!.Dense(), inputs[2]?.Dense());
        var (initialState, device) = (inputs[3]?.InDtype(ScalarType.Float32).Dense(), x.device);
        var offsets = _sequences.OffsetsOn(device);
        var y = Scratch.Dense(x, x.dtype);
        var finalState = _outputFinalState && !_updateState
            ? Scratch.Empty([_sequences.Count, x.Size(2), weight.LastSize() - 1], device: device)
            : null;
        Kernels(x, weight, bias, offsets).Forward(x.TokenView(), TensorPointer.Of(initialState), y.TokenView(),
            TensorPointer.Of(_updateState ? initialState : finalState));
        GC.KeepAlive((x, weight, bias, initialState, offsets));

        saved?.Save(inputs[0], inputs[1], inputs[2], inputs[3], offsets);
        return [y, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (x, weight, bias) = (saved[0]!.DenseChannels(), saved[1]!.Dense(), saved[2]?.Dense());
        var (initialState, offsets, device) = (saved[3]?.InDtype(ScalarType.Float32).Dense(), saved[4], x.device);
        var outputGradient = gradOutputs[0]?.InDtype(x.dtype).DenseChannels();
        var finalStateGradient = gradOutputs[1]?.InDtype(ScalarType.Float32).Dense();
        var needs = saved.NeedsGrad;

        var dx = saved.NewGradient(0, x);
        var dWeight = needs[1] ? Scratch.Dense(weight, weight.dtype) : null;
        var dBias = needs[2] ? Scratch.Dense(bias!, bias!.dtype) : null;
        var dInitialState = needs[3] ? Scratch.Dense(initialState!, ScalarType.Float32) : null;
        Tensor? parts = null;
        Kernels(x, weight, bias, offsets).Backward(x.TokenView(), TensorPointer.Of(initialState), outputGradient.TokenView(),
            TensorPointer.Of(finalStateGradient), dx.TokenView(), TensorPointer.Of(dInitialState), TensorPointer.Of(dWeight),
            TensorPointer.Of(dBias), count => TensorPointer.Of(parts = Scratch.Empty([count], device: device)));
        GC.KeepAlive((x, weight, bias, initialState, offsets, outputGradient, finalStateGradient));
        GC.KeepAlive(parts);
        return [needs[0] ? dx : null, dWeight, dBias, dInitialState?.InDtype(saved[3]!.dtype)];
    }

    private CausalConvKernels Kernels(Tensor x, Tensor weight, Tensor? bias, Tensor? offsets) =>
        new(GpuDevice.Get(Math.Max(0, x.device_index)))
        {
            Sequences = new SequenceLayout(TensorPointer.Of(offsets), _sequences.Count, _sequences.MaxLength, IsReversed: 0),
            Tokens = _sequences.Tokens,
            Channels = checked((int)x.Size(2)),
            Width = checked((int)weight.LastSize()),
            IsSilu = _silu,
            Element = x.dtype.Element()!.Value,
            Parameters = new CausalConvParameters(TensorPointer.Of(weight), TensorPointer.Of(bias),
                weight.dtype == ScalarType.Float32 ? 1 : 0, bias?.dtype == ScalarType.Float32 ? 1 : 0),
        };
}
