using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Conv;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The causal convolution on the CPU: <see cref="CausalConvCpu"/> as an operation of autograd.</summary>
internal sealed class CausalConvFunction : FlaFunction
{
    private readonly Sequences _sequences;
    private readonly bool _silu, _outputFinalState;

    private CausalConvFunction(Sequences sequences, bool silu, bool outputFinalState) =>
        (_sequences, _silu, _outputFinalState) = (sequences, silu, outputFinalState);

    /// <summary>Arguments as those of <see cref="FlaOps.CausalConv1d"/>, checked; weight [E, W].</summary>
    public static (Tensor output, Tensor? finalState) Run(
        Sequences sequences, Tensor x, Tensor weight, Tensor? bias, bool silu, Tensor? initialState, bool outputFinalState)
    {
        var outputs = new CausalConvFunction(sequences, silu, outputFinalState).Run(x, weight, bias, initialState);
        return (outputs[0]!, outputs[1]);
    }

    protected override unsafe Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        saved?.Save(inputs);
        var call = new Call(inputs);
        var y = Scratch.Empty(call.X.shape);
        var finalState = _outputFinalState ? Scratch.Empty([_sequences.Count, call.Width - 1, call.X.size(2)]) : null;
        new CausalConvCpu
        {
            Offsets = _sequences.Offsets.ToArray(),
            Channels = (int)call.X.size(2),
            Width = call.Width,
            Silu = _silu,
            X = TensorPointer.Float32(call.X),
            RowX = call.RowX,
            Weight = TensorPointer.Float32(call.Weight),
            Bias = TensorPointer.Float32(call.Bias),
            InitialState = TensorPointer.Float32(call.InitialState),
            Y = TensorPointer.Float32(y),
            FinalState = TensorPointer.Float32(finalState),
        }.Forward();
        GC.KeepAlive(call);
        return [call.Channels.Unpad(y, 2)!.to(inputs[0]!.dtype), call.StateOut(finalState)];
    }

    protected override unsafe Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        Tensor?[] inputs = [saved[0], saved[1], saved[2], saved[3]];
        var call = new Call(inputs);
        var gradY = call.Channels.Pad(gradOutputs[0], 2);
        var gradFinal = call.StateIn(gradOutputs[1]);
        var gradX = Scratch.Empty(call.X.shape);
        var gradInitial = saved.NeedsGrad[3] ? Scratch.EmptyLike(call.InitialState!) : null;
        var gradWeights = Scratch.Empty([CausalConvCpu.Blocks(_sequences.Tokens, call.Width), call.Width + 1, call.X.size(2)]);
        new CausalConvCpu
        {
            Offsets = _sequences.Offsets.ToArray(),
            Channels = (int)call.X.size(2),
            Width = call.Width,
            Silu = _silu,
            X = TensorPointer.Float32(call.X),
            RowX = call.RowX,
            Weight = TensorPointer.Float32(call.Weight),
            Bias = TensorPointer.Float32(call.Bias),
            InitialState = TensorPointer.Float32(call.InitialState),
            GradY = TensorPointer.Float32(gradY),
            GradFinalState = TensorPointer.Float32(gradFinal),
            GradX = TensorPointer.Float32(gradX),
            GradInitialState = TensorPointer.Float32(gradInitial),
            GradWeights = TensorPointer.Float32(gradWeights),
        }.Backward();
        GC.KeepAlive(call);
        GC.KeepAlive(gradY);
        GC.KeepAlive(gradFinal);

        var gradTaps = call.Channels.Unpad(gradWeights.sum(dim: 0).t(), 0)!; // [E, W + 1]
        return
        [
            call.Channels.Unpad(gradX, 2)!.to(inputs[0]!.dtype),
            gradTaps.narrow(1, 0, call.Width).to(inputs[1]!.dtype),
            saved.NeedsGrad[2] ? gradTaps.select(1, call.Width).to(inputs[2]!.dtype) : null,
            gradInitial is null ? null : call.StateOut(gradInitial)!.to(inputs[3]!.dtype),
        ];
    }

    /// <summary>The inputs as the kernel reads them: float32, whole vectors of channels, channels last throughout.</summary>
    private sealed class Call
    {
        public Call(Tensor?[] inputs)
        {
            Channels = new Channels(inputs[0]!.size(2), 1, CausalConvCpu.Lanes);
            X = Channels.PadTokens(inputs[0]!, out var row);
            RowX = row;
            Weight = Channels.Pad(inputs[1]!.t(), 1)!;
            Bias = Channels.Pad(inputs[2], 0);
            InitialState = StateIn(inputs[3]);
        }

        public Channels Channels { get; }

        public Tensor X { get; }

        public int RowX { get; }

        public Tensor Weight { get; } // [W, E]

        public Tensor? Bias { get; }

        public Tensor? InitialState { get; } // [S, W - 1, E]

        public int Width => (int)Weight.size(0);

        public Tensor? StateIn(Tensor? state) => Channels.Pad(state?.transpose(1, 2), 2);

        public Tensor? StateOut(Tensor? state) => Channels.Unpad(state, 2)?.transpose(1, 2).contiguous();
    }
}
