using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>Gated linear attention over chunks on a GPU, with <see cref="GlaChunkKernels"/>.</summary>
internal sealed class GlaChunkFunction : GlaCudaFunction
{
    private readonly bool _outputFinalState;
    private readonly int? _segments;
    private readonly bool _portable;

    private GlaChunkFunction(Tensor q, Tensor k, Tensor v, double scale, Sequences sequences, bool reverse, bool outputFinalState,
        int? segments, bool portable)
        : base(q, k, v, scale, sequences, reverse) =>
        (_outputFinalState, _segments, _portable) = (outputFinalState, segments, portable);

    /// <summary>
    /// Shapes as in <see cref="FlaOps.Gla"/>, checked by the caller, who knows that there is a <see cref="GlaChunkTile"/>.
    /// </summary>
    /// <param name="q">bfloat16, float16 or float32.</param>
    /// <param name="k">In q's dtype.</param>
    /// <param name="v">In q's dtype.</param>
    /// <param name="g">In q's dtype or float32.</param>
    /// <param name="scale">Of q.</param>
    /// <param name="initialState">float32.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="reverse">Whether each sequence runs backwards.</param>
    /// <param name="outputFinalState">Whether the final state is wanted.</param>
    /// <param name="segments">Parts of each sequence that are worked on at the same time, if it is long enough; null for as many
    /// as keep the GPU busy.</param>
    /// <param name="portable">Whether to do without what only some GPUs have: to test it on these as well.</param>
    public static (Tensor output, Tensor? finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, double scale,
        Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState, int? segments, bool portable = false)
    {
        var function = new GlaChunkFunction(q, k, v, scale, sequences, reverse, outputFinalState, segments, portable);
        var outputs = function.Run(q, k, v, g, initialState);
        return (outputs[0]!, outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (q, k, v, g) = (inputs[0]!.DenseRows(), inputs[1]!.DenseRows(), inputs[2]!.DenseRows(), inputs[3]!.DenseRows());
        var (initialState, device) = (inputs[4]?.Dense(), q.device);
        var offsets = Sequences.OffsetsOn(device);
        var kernels = Kernels(q, g, offsets, saved is not null);
        var output = PerHead(ValueSize, v.dtype, device);
        var finalState = _outputFinalState ? States(device) : null;
        var states = saved is not null && NeedsTokens(saved) ? SavedStates(kernels, device) : null;
        var (segmentStates, segmentDecays) = SegmentStates(kernels, device);
        kernels.Forward(q.View(), k.View(), v.View(), g.View(), TensorPointer.Of(initialState), output.View(),
            TensorPointer.Of(finalState), TensorPointer.Of(states), TensorPointer.Of(segmentStates),
            TensorPointer.Of(segmentDecays));
        GC.KeepAlive((q, k, v, g, initialState, offsets));
        GC.KeepAlive((segmentStates, segmentDecays));

        saved?.Save(inputs[0], inputs[1], inputs[2], inputs[3], states, offsets);
        return [output, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (q, k, v, g) = (saved[0]!.DenseRows(), saved[1]!.DenseRows(), saved[2]!.DenseRows(), saved[3]!.DenseRows());
        var (states, offsets, device) = (saved[4], saved[5], q.device);
        var output = gradOutputs[0]?.DenseRows() ?? PerHead(ValueSize, v.dtype, device).zero_();
        var finalState = gradOutputs[1]?.Dense();
        var kernels = Kernels(q, g, offsets, gradients: true);

        var initialState = saved.NeedsGrad[4] ? States(device) : null;
        var stateGradients = states is null ? null : SavedStates(kernels, device);
        var (segmentStates, segmentDecays) = SegmentStates(kernels, device);
        kernels.BackwardStates(q.View(), g.View(), output.View(), TensorPointer.Of(finalState), TensorPointer.Of(initialState),
            TensorPointer.Of(stateGradients), TensorPointer.Of(segmentStates), TensorPointer.Of(segmentDecays));
        GC.KeepAlive((segmentStates, segmentDecays, finalState));
        if (states is null)
        {
            GC.KeepAlive((q, g, output, offsets));
            return [null, null, null, null, initialState];
        }

        var (dq, dk) = (PerHead(KeySize, q.dtype, device), PerHead(KeySize, q.dtype, device));
        var (dv, dg) = (PerHead(ValueSize, v.dtype, device), PerHead(KeySize, g.dtype, device));
        kernels.Backward(q.View(), k.View(), v.View(), g.View(), output.View(), dq.View(), dk.View(), dv.View(), dg.View(),
            TensorPointer.Of(states), TensorPointer.Of(stateGradients));
        GC.KeepAlive((q, k, v, g, output, offsets));
        GC.KeepAlive((states, stateGradients));
        return [dq, SumGroups(dk, k.dtype), SumGroups(dv, v.dtype), SumGroups(dg, g.dtype), initialState];
    }

    private static bool NeedsTokens(SavedTensors saved) => saved.NeedsGrad.AsSpan(0, 4).Contains(true);

    private static Tensor SavedStates(GlaChunkKernels kernels, Device device) =>
        Scratch.Empty([kernels.SavedStateCount], ScalarType.BFloat16, device);

    /// <summary>Memory for the states between segments, if there are several.</summary>
    private static (Tensor?, Tensor?) SegmentStates(GlaChunkKernels kernels, Device device) => kernels.Segments.Count == 1
        ? (null, null)
        : (Scratch.Empty([kernels.SegmentStateCount], device: device), Scratch.Empty([kernels.SegmentDecayCount], device: device));

    private GlaChunkKernels Kernels(Tensor q, Tensor g, Tensor? offsets, bool gradients)
    {
        var widest = GlaChunkTile.Choose(KeySize, ValueSize, q.dtype.Element()!.Value, g.dtype.Element()!.Value, gradients,
            Gpu.Target!, out var reason) ?? throw new NotSupportedException(reason);
        var lines = (long)Sequences.Count * Heads;
        var tile = widest.For(lines, ValueSize, Gpu.Info.MultiprocessorCount);
        if (_portable)
            tile = tile with { IsPortable = true };
        var chunks = GlaChunkKernels.ChunkCount(Sequences.MaxLength, tile.Chunk);
        return new GlaChunkKernels
        {
            Device = Gpu,
            Tile = tile,
            Segments = _segments is { } count
                ? GlaSegments.Of(count, chunks)
                : GlaSegments.For(tile.BlockCount(lines, ValueSize), chunks, Gpu.Info.MultiprocessorCount),
            Time = Time,
            Sequences = Layout(offsets),
            Heads = Heads,
            KvHeads = KvHeads,
            KeySize = KeySize,
            ValueSize = ValueSize,
            Scale = Scale,
        };
    }
}
