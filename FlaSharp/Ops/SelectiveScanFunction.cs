using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.SelectiveScan;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The selective scan on the CPU: <see cref="SelectiveScanCpu"/> as an operation of autograd.</summary>
internal sealed class SelectiveScanFunction(Sequences sequences, bool deltaSoftplus, bool outputFinalState) : FlaFunction
{
    private const int InputCount = 9;

    private readonly int[] _offsets = sequences.Offsets.ToArray();

    /// <inheritdoc/>
    /// <param name="inputs">u, delta, a, b, c, d, z, deltaBias, initialState; b and c [B, T, G, N].</param>
    /// <param name="saved">The inputs and the states at the starts of the chunks.</param>
    protected override unsafe Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var call = new Call(inputs);
        var y = Scratch.EmptyLike(call.U);
        var finalState = outputFinalState ? Scratch.Empty([sequences.Count, call.Channels.Padded, call.A.size(1)]) : null;
        var chunkStates = saved is null ? null
            : Scratch.Empty([SelectiveScanCpu.ChunkCount(_offsets, (int)call.A.size(1)), call.Channels.Padded, call.A.size(1)]);
        saved?.Save([.. inputs, chunkStates]);
        new SelectiveScanCpu
        {
            Offsets = _offsets,
            Channels = (int)call.Channels.Padded,
            States = (int)call.A.size(1),
            Groups = (int)call.B.size(2),
            Softplus = deltaSoftplus,
            U = TensorPointer.Float32(call.U),
            Delta = TensorPointer.Float32(call.Delta),
            A = TensorPointer.Float32(call.A),
            B = TensorPointer.Float32(call.B),
            C = TensorPointer.Float32(call.C),
            D = TensorPointer.Float32(call.D),
            Z = TensorPointer.Float32(call.Z),
            DeltaBias = TensorPointer.Float32(call.DeltaBias),
            InitialState = TensorPointer.Float32(call.InitialState),
            Y = TensorPointer.Float32(y),
            FinalState = TensorPointer.Float32(finalState),
            ChunkStates = TensorPointer.Float32(chunkStates),
        }.Forward();
        GC.KeepAlive(call);
        return [call.Channels.Unpad(y, 2)!.to(inputs[0]!.dtype), call.Channels.Unpad(finalState, 1)];
    }

    protected override unsafe Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var inputs = new Tensor?[InputCount];
        for (var i = 0; i < InputCount; i++)
            inputs[i] = saved[i];
        var call = new Call(inputs);
        long channels = call.Channels.Padded, states = call.A.size(1), groups = call.B.size(2);
        var tiles = SelectiveScanCpu.TilesPerGroup((int)channels, (int)groups);
        var ranges = SelectiveScanCpu.Ranges(sequences.Count);

        var gradY = call.Channels.Pad(gradOutputs[0], 2) ?? zeros_like(call.U);
        var gradFinal = call.Channels.Pad(gradOutputs[1], 1);
        var gradU = Scratch.EmptyLike(call.U);
        var gradDelta = Scratch.EmptyLike(call.U);
        var gradZ = call.Z is null ? null : Scratch.EmptyLike(call.Z);
        var gradInitial = saved.NeedsGrad[8] ? Scratch.EmptyLike(call.InitialState!) : null;
        var gradB = Scratch.Empty([tiles, .. call.B.shape]);
        var gradC = Scratch.Empty([tiles, .. call.C.shape]);
        var gradA = Scratch.Empty([ranges, channels, states]);
        var gradD = Scratch.Empty([ranges, channels]);
        var gradBias = Scratch.Empty([ranges, channels]);
        new SelectiveScanCpu
        {
            Offsets = _offsets,
            Channels = (int)channels,
            States = (int)states,
            Groups = (int)groups,
            Softplus = deltaSoftplus,
            U = TensorPointer.Float32(call.U),
            Delta = TensorPointer.Float32(call.Delta),
            A = TensorPointer.Float32(call.A),
            B = TensorPointer.Float32(call.B),
            C = TensorPointer.Float32(call.C),
            D = TensorPointer.Float32(call.D),
            Z = TensorPointer.Float32(call.Z),
            DeltaBias = TensorPointer.Float32(call.DeltaBias),
            ChunkStates = TensorPointer.Float32(saved[InputCount]),
            GradY = TensorPointer.Float32(gradY),
            GradFinalState = TensorPointer.Float32(gradFinal),
            GradU = TensorPointer.Float32(gradU),
            GradDelta = TensorPointer.Float32(gradDelta),
            GradZ = TensorPointer.Float32(gradZ),
            GradInitialState = TensorPointer.Float32(gradInitial),
            GradB = TensorPointer.Float32(gradB),
            GradC = TensorPointer.Float32(gradC),
            GradA = TensorPointer.Float32(gradA),
            GradD = TensorPointer.Float32(gradD),
            GradDeltaBias = TensorPointer.Float32(gradBias),
        }.Backward();
        GC.KeepAlive(call);
        GC.KeepAlive(gradY);
        GC.KeepAlive(gradFinal);

        return
        [
            call.Channels.Unpad(gradU, 2)!.to(inputs[0]!.dtype),
            call.Channels.Unpad(gradDelta, 2)!.to(inputs[1]!.dtype),
            call.Channels.Unpad(gradA.sum(dim: 0), 0),
            gradB.sum(dim: 0).to(inputs[3]!.dtype),
            gradC.sum(dim: 0).to(inputs[4]!.dtype),
            call.Channels.Unpad(gradD.sum(dim: 0), 0),
            call.Channels.Unpad(gradZ, 2)?.to(inputs[6]!.dtype),
            call.Channels.Unpad(gradBias.sum(dim: 0), 0),
            call.Channels.Unpad(gradInitial, 1),
        ];
    }

    /// <summary>The inputs as the kernel reads them: float32 and whole vectors of channels in each group.</summary>
    private sealed class Call
    {
        public Call(Tensor?[] inputs)
        {
            B = inputs[3]!.to(ScalarType.Float32).contiguous();
            C = inputs[4]!.to(ScalarType.Float32).contiguous();
            Channels = new Channels(inputs[0]!.size(2), B.size(2), SelectiveScanCpu.Lanes);
            U = Channels.Pad(inputs[0], 2)!;
            Delta = Channels.Pad(inputs[1], 2)!;
            A = Channels.Pad(inputs[2], 0)!;
            D = Channels.Pad(inputs[5], 0);
            Z = Channels.Pad(inputs[6], 2);
            DeltaBias = Channels.Pad(inputs[7], 0);
            InitialState = Channels.Pad(inputs[8], 1);
        }

        public Channels Channels { get; }

        public Tensor U { get; } // [B, T, E]

        public Tensor Delta { get; } // [B, T, E]

        public Tensor A { get; } // [E, N]

        public Tensor B { get; } // [B, T, G, N]

        public Tensor C { get; } // [B, T, G, N]

        public Tensor? D { get; } // [E]

        public Tensor? Z { get; } // [B, T, E]

        public Tensor? DeltaBias { get; } // [E]

        public Tensor? InitialState { get; } // [S, E, N]
    }
}
