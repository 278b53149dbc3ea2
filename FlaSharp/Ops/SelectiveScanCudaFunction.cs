using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.SelectiveScan;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The selective scan on a GPU: <see cref="SelectiveScanKernels"/> as an operation of autograd.</summary>
/// <param name="sequences">The layout of the tokens.</param>
/// <param name="deltaSoftplus">Whether delta goes through softplus.</param>
/// <param name="outputFinalState">Whether the final state is wanted.</param>
/// <param name="updateState">Whether it is written over the initial one, which is dense, instead of a second output.</param>
/// <param name="aIsLog">Whether a holds log(-A).</param>
/// <param name="cut">Another cut into blocks than the one that keeps the GPU busy; null for that.</param>
internal sealed class SelectiveScanCudaFunction(
    Sequences sequences, bool deltaSoftplus, bool outputFinalState, bool updateState = false, bool aIsLog = false,
    SelectiveScanCut? cut = null)
    : FlaFunction
{
    private const int InputCount = 9;

    /// <inheritdoc/>
    /// <param name="inputs">u, delta, a, b, c, d, z, deltaBias, initialState; b and c [B, T, G, N] or [B, T, N].</param>
    /// <param name="saved">The inputs, the states on the way, and the offsets.</param>
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var call = new Call(inputs, sequences, sequences.OffsetsOn(inputs[0]!.device));
        var (kernels, initialState) = (Kernels(call), inputs[8]?.Dense());
        var taken = kernels.ForwardCut;
        var y = Scratch.Dense(call.U, call.U.dtype);
        var finalState = outputFinalState && !updateState ? call.States(1) : null;
        var savedStates = saved is null ? null : call.Floats(kernels.SavedStates, call.Channels, call.StateSize);
        var waiting = kernels.HasSlices ? call.States(taken.Segments) : null;
        var (segmentStates, segmentDeltas) = call.Segments(taken);
        kernels.Forward(call.Inputs, TensorPointer.Of(initialState), y.TokenView(),
            TensorPointer.Of(updateState ? initialState : finalState), TensorPointer.Of(savedStates), TensorPointer.Of(waiting),
            TensorPointer.Of(segmentStates), TensorPointer.Of(segmentDeltas));
        GC.KeepAlive((call, initialState, waiting, segmentStates, segmentDeltas));

        saved?.Save([.. inputs, savedStates, call.Offsets]);
        return [y, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var inputs = new Tensor?[InputCount];
        for (var i = 0; i < InputCount; i++)
            inputs[i] = saved[i];
        var call = new Call(inputs, sequences, saved[InputCount + 1]);
        var (kernels, needs) = (Kernels(call), saved.NeedsGrad);
        var taken = kernels.BackwardCut;
        var gradY = gradOutputs[0]?.DenseChannels() ?? zeros_like(call.U);
        var gradFinal = gradOutputs[1]?.Dense();

        var (gradU, gradDelta) = (Scratch.Dense(call.U, call.U.dtype), Scratch.Dense(call.U, call.U.dtype));
        var gradZ = call.Z is null ? null : saved.NewGradient(6, call.Z);
        var gradInitial = needs[8] ? call.States(1) : null;
        var gradA = call.Floats(call.Channels, call.StateSize);
        var gradD = needs[5] ? call.Floats(call.Channels) : null;
        var gradBias = needs[7] ? call.Floats(call.Channels) : null;
        var (gradB, gradC) = (Scratch.Dense(call.B, call.B.dtype), Scratch.Dense(call.B, call.B.dtype));
        Tensor? Parts(Tensor? gradient) =>
            gradient is null ? null : call.Floats((long)sequences.Count * taken.Segments, gradient.numel());
        var (partsOfA, partsOfD, partsOfBias) = (Parts(gradA), Parts(gradD), Parts(gradBias));
        var kept = SelectiveScanTile.KeptAs(call.U.dtype.Element()!.Value) == ElementType.Float32 ? float32 : call.B.dtype;
        var partsOfMatrices = Scratch.Empty([2, kernels.GroupBlocks, call.B.numel()], kept, call.B.device);
        var waiting = kernels.HasSlices ? call.States(taken.Segments) : null;
        var (segmentStates, segmentDeltas) = call.Segments(taken);
        kernels.Backward(call.Inputs,
            new SelectiveScanGradients(gradY.TokenView(), TensorPointer.Of(gradFinal), gradU.TokenView(), gradDelta.TokenView(),
                gradZ.TokenView(), TensorPointer.Of(gradInitial), TensorPointer.Of(gradA), TensorPointer.Of(gradD),
                TensorPointer.Of(gradBias), TensorPointer.Of(gradB), TensorPointer.Of(gradC)),
            new SelectiveScanParts(TensorPointer.Of(partsOfA), TensorPointer.Of(partsOfD), TensorPointer.Of(partsOfBias),
                TensorPointer.Of(partsOfMatrices)),
            TensorPointer.Of(saved[InputCount]), TensorPointer.Of(waiting), TensorPointer.Of(segmentStates),
            TensorPointer.Of(segmentDeltas));
        GC.KeepAlive((call, gradY, gradFinal, waiting, segmentStates, segmentDeltas));
        GC.KeepAlive((partsOfA, partsOfD, partsOfBias, partsOfMatrices));
        return
        [
            gradU, gradDelta, gradA, saved.Gradient(3, gradB, call.B.dtype), saved.Gradient(4, gradC, call.B.dtype), gradD, gradZ,
            gradBias, gradInitial,
        ];
    }

    private SelectiveScanKernels Kernels(Call call) => new(GpuDevice.Get(Math.Max(0, call.U.device_index)))
    {
        Tokens = sequences.Tokens,
        Sequences = new SequenceLayout(TensorPointer.Of(call.Offsets), sequences.Count, sequences.MaxLength, 0),
        Channels = call.Channels,
        Groups = call.Groups,
        States = call.StateSize,
        Element = call.U.dtype.Element()!.Value,
        HasSoftplus = deltaSoftplus,
        AIsLog = aIsLog,
        Cut = cut,
    };

    /// <summary>The inputs as the kernels read them.</summary>
    private sealed class Call
    {
        private readonly Tensor _delta, _a, _c;
        private readonly Tensor? _d, _bias;
        private readonly Sequences _sequences;

        public Call(Tensor?[] inputs, Sequences sequences, Tensor? offsets)
        {
            (_sequences, Offsets) = (sequences, offsets);
            (U, _delta, Z) = (inputs[0]!.DenseChannels(), inputs[1]!.DenseChannels(), inputs[6]?.DenseChannels());
            (B, _c) = (Dense(inputs[3]!), Dense(inputs[4]!));
            (_a, _d, _bias) = (inputs[2]!.Dense(), inputs[5]?.Dense(), inputs[7]?.Dense());
            Inputs = new SelectiveScanInputs(U.TokenView(), _delta.TokenView(), Z.TokenView(), View(B), View(_c),
                TensorPointer.Of(_a), TensorPointer.Of(_d), TensorPointer.Of(_bias));
        }

        public SelectiveScanInputs Inputs { get; }

        public Tensor U { get; }

        public Tensor? Z { get; }

        public Tensor B { get; }

        public Tensor? Offsets { get; }

        public int Channels => checked((int)U.Size(2));

        public int Groups => IsGrouped(B) ? checked((int)B.Size(2)) : 1;

        public int StateSize => checked((int)_a.Size(1));

        private static bool IsGrouped(Tensor matrix) => matrix.Rank() == 4;

        private static Tensor Dense(Tensor matrix) => IsGrouped(matrix) ? matrix.DenseRows() : matrix.DenseChannels();

        private static TensorView View(Tensor matrix) => IsGrouped(matrix) ? matrix.View() : matrix.TokenView();

        /// <summary>Uninitialised float32 on the inputs' device.</summary>
        public Tensor Floats(params ReadOnlySpan<long> sizes) => Scratch.Empty(sizes, device: U.device);

        /// <summary>Uninitialised [S * segments, E, N].</summary>
        public Tensor States(int segments) => Floats((long)_sequences.Count * segments, Channels, StateSize);

        /// <summary>Room for what <see cref="SelectiveScanKernels"/> does with several segments.</summary>
        public (Tensor? states, Tensor? deltas) Segments(SelectiveScanCut cut) => cut.Segments == 1
            ? (null, null)
            : (States(cut.States), Floats((long)_sequences.Count * cut.States, Channels));
    }
}
