using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// The state space duality over chunks on a GPU, with <see cref="SsdChunkKernels"/>. Inputs: x, dt, rates, b, c, D, bias, initial
/// state; the parameters are float32. Outputs: y and the final state.
/// </summary>
internal sealed class SsdChunkFunction(
    SsdTile tile, SsdStepOptions options, Sequences sequences, bool outputFinalState, Tensor? z = null, int? segments = null)
    : FlaFunction
{
    private const int X = 0, Dt = 1, Rates = 2, B = 3, C = 4, D = 5, Bias = 6, InitialState = 7, InputCount = 8;
    private const int States = InputCount, Steps = 9, Sums = 10, Offsets = 11; // saved beside the inputs
    private const int TotalKinds = 3;

    // z, the output's gate, is no input: it has no gradient here.
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var given = Dense(inputs);
        var (x, device) = (given[X]!, given[X]!.device);
        var offsets = sequences.OffsetsOn(device);
        var gate = z?.DenseRows();
        var kernels = Kernels(given, offsets);
        var (steps, sums) = (Floats(kernels.StepCount, device), Floats(kernels.StepCount, device));
        var output = Scratch.Dense(x, x.dtype);
        var finalState = outputFinalState ? StatesOf(given) : null;
        var states = saved is not null && NeedsTokens(saved) ? SavedStates(kernels, device) : null;
        var (segmentStates, segmentDecays) = SegmentStates(kernels, device);
        kernels.Steps(given[Dt].View(), TensorPointer.Of(steps), TensorPointer.Of(sums));
        kernels.Forward(x.View(), given[B].View(), given[C].View(), gate.View(), TensorPointer.Of(steps), TensorPointer.Of(sums),
            TensorPointer.Of(given[InitialState]), output.View(), TensorPointer.Of(finalState), TensorPointer.Of(states),
            TensorPointer.Of(segmentStates), TensorPointer.Of(segmentDecays));
        GC.KeepAlive((given, gate, offsets, segmentStates, segmentDecays));

        saved?.Save([.. inputs[..InitialState], null, states, steps, sums, offsets]);
        return [output, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var given = Dense([.. Enumerable.Range(0, InputCount).Select(i => saved[i])]);
        var (x, b, c, dt) = (given[X]!, given[B]!, given[C]!, given[Dt]!);
        var (states, steps, sums, offsets, device) = (saved[States], saved[Steps], saved[Sums], saved[Offsets], x.device);
        var output = gradOutputs[0]?.DenseRows() ?? zeros_like(x);
        var finalState = gradOutputs[1]?.Dense();
        var kernels = Kernels(given, offsets);

        var dx = saved.NewGradient(X, x);
        var initialState = saved.NeedsGrad[InitialState] ? StatesOf(given) : null;
        var stateGradients = states is null ? null : SavedStates(kernels, device);
        var (segmentStates, segmentDecays) = SegmentStates(kernels, device);
        kernels.BackwardScan(output.View(), b.View(), c.View(), TensorPointer.Of(steps), TensorPointer.Of(sums),
            TensorPointer.Of(finalState), dx.View(), TensorPointer.Of(initialState), TensorPointer.Of(stateGradients),
            TensorPointer.Of(segmentStates), TensorPointer.Of(segmentDecays));
        GC.KeepAlive((segmentStates, segmentDecays, finalState));

        var gradients = new Tensor?[InputCount];
        (gradients[X], gradients[InitialState]) = (dx, initialState);
        if (states is not null)
        {
            long[] sets = [b.Size(0), b.Size(1), b.Size(2) * kernels.SetsOfGroup, b.Size(3)];
            var (db, dc) = (Scratch.Empty(sets, device: device), Scratch.Empty(sets, device: device));
            var (tokens, products) = (Floats(kernels.TokenCount, device), Floats(kernels.ProductCount, device));
            kernels.Backward(x.View(), b.View(), c.View(), output.View(), TensorPointer.Of(steps), TensorPointer.Of(sums),
                TensorPointer.Of(states), TensorPointer.Of(stateGradients), db.View(), dc.View(), TensorPointer.Of(tokens),
                TensorPointer.Of(products));
            var ddt = saved.NewGradient(Dt, dt);
            var totals = zeros([kernels.Spans, x.Size(2), TotalKinds], ScalarType.Float32, device);
            kernels.StepsBackward(dt.View(), ddt.View(), TensorPointer.Of(tokens), TensorPointer.Of(products),
                TensorPointer.Of(totals));
            GC.KeepAlive((tokens, products));
            var sum = totals.sum([0L]); // a plain 0 would be a dtype
            (gradients[Dt], gradients[B], gradients[C]) = (ddt, SumSets(saved, B, db, b), SumSets(saved, C, dc, c));
            gradients[Rates] = Wanted(saved, Rates, () => sum.select(1, 0).contiguous());
            gradients[Bias] = Wanted(saved, Bias, () => sum.select(1, 1).contiguous());
            gradients[D] = Wanted(saved, D, () => given[D]!.Rank() == 1
                ? sum.select(1, 2).contiguous()
                : (x * output).sum([0, 1], type: ScalarType.Float32));
        }
        GC.KeepAlive((given, output, states, steps, sums, offsets, stateGradients));
        return gradients;
    }

    private static Tensor? Wanted(SavedTensors saved, int input, Func<Tensor> gradient) =>
        saved.NeedsGrad[input] ? gradient() : null;

    /// <summary>Of the sets of heads, in a fixed order.</summary>
    private static Tensor SumSets(SavedTensors saved, int input, Tensor perSet, Tensor like)
    {
        var sum = perSet.Size(2) == like.Size(2) ? perSet : perSet.unflatten(2, like.Size(2), -1).sum(3);
        return saved.Gradient(input, sum, like.dtype);
    }

    private static Tensor?[] Dense(Tensor?[] inputs) => Array.ConvertAll(Enumerable.Range(0, InputCount).ToArray(), i => i switch
    {
        X or B or C => inputs[i]!.DenseRows(),
        Dt => inputs[i],
        _ => inputs[i]?.Dense(),
    });

    private static bool NeedsTokens(SavedTensors saved) => saved.NeedsGrad.AsSpan(0, InitialState).Contains(true);

    private static Tensor Floats(long count, Device device) => Scratch.Empty([count], device: device);

    private static Tensor SavedStates(SsdChunkKernels kernels, Device device) =>
        Scratch.Empty([kernels.SavedStateCount], ScalarType.BFloat16, device);

    /// <summary>Memory for the states between segments, if there are several.</summary>
    private static (Tensor?, Tensor?) SegmentStates(SsdChunkKernels kernels, Device device) => kernels.Segments.Count == 1
        ? (null, null)
        : (Floats(kernels.SegmentStateCount, device), Floats(kernels.SegmentDecayCount, device));

    /// <summary>Uninitialised float32 [S, H, P, N].</summary>
    private Tensor StatesOf(Tensor?[] given) =>
        Scratch.Empty([sequences.Count, given[X]!.Size(2), given[X]!.Size(3), given[B]!.Size(3)], device: given[X]!.device);

    private SsdChunkKernels Kernels(Tensor?[] given, Tensor? offsets)
    {
        var (x, b) = (given[X]!, given[B]!);
        var gpu = GpuDevice.Get(Math.Max(0, x.device_index));
        var (heads, headSize) = (checked((int)x.Size(2)), checked((int)x.Size(3)));
        var chunks = GlaChunkKernels.ChunkCount(sequences.MaxLength, tile.Chunk);
        var blocks = (long)sequences.Count * heads * tile.ValueTiles(headSize);
        return new SsdChunkKernels
        {
            Device = gpu,
            Tile = tile,
            Segments = segments is { } count
                ? GlaSegments.Of(count, chunks)
                : GlaSegments.For(blocks, chunks, gpu.Info.MultiprocessorCount),
            Time = checked((int)x.Size(1)),
            Sequences = new(TensorPointer.Of(offsets), sequences.Count, sequences.MaxLength, 0),
            Heads = heads,
            Groups = checked((int)b.Size(2)),
            HeadSize = headSize,
            StateSize = checked((int)b.Size(3)),
            Step = given[Dt]!.dtype.Element()!.Value,
            Rule = options.Rule(given[Bias], given[Rates]!),
            Direct = TensorPointer.Of(given[D]),
            DirectPerChannel = given[D] is { } direct && direct.Rank() == 2,
        };
    }
}
