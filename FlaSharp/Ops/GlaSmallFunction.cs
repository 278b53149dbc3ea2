using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>Gated linear attention of small heads on a GPU, with <see cref="GlaSmallKernels"/>.</summary>
internal sealed class GlaSmallFunction : GlaCudaFunction
{
    private readonly GlaSmallTile _tile;
    private readonly bool _outputFinalState;

    private GlaSmallFunction(GlaSmallTile tile, Tensor q, Tensor k, Tensor v, double scale, Sequences sequences, bool reverse,
        bool outputFinalState)
        : base(q, k, v, scale, sequences, reverse) => (_tile, _outputFinalState) = (tile, outputFinalState);

    /// <summary>Shapes and options as in <see cref="FlaOps.Gla"/>, checked by the caller.</summary>
    /// <param name="tile">Of <see cref="GlaSmallTile.Choose"/> for this call.</param>
    /// <param name="q">bfloat16 or float16.</param>
    /// <param name="k">In q's dtype.</param>
    /// <param name="v">In q's dtype.</param>
    /// <param name="g">In q's dtype or float32.</param>
    /// <param name="scale">Of q.</param>
    /// <param name="initialState">float32.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="reverse">Whether each sequence runs backwards.</param>
    /// <param name="outputFinalState">Whether the final state is wanted.</param>
    public static (Tensor output, Tensor? finalState) Run(GlaSmallTile tile, Tensor q, Tensor k, Tensor v, Tensor g, double scale,
        Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState)
    {
        var function = new GlaSmallFunction(tile, q, k, v, scale, sequences, reverse, outputFinalState);
        var outputs = function.Run(q, k, v, g, initialState);
        return (outputs[0]!, outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (q, k, v, g) = (inputs[0]!.DenseRows(), inputs[1]!.DenseRows(), inputs[2]!.DenseRows(), inputs[3]!.DenseRows());
        var (initialState, device) = (inputs[4]?.Dense(), q.device);
        var offsets = Sequences.OffsetsOn(device);
        var kernels = Kernels(offsets);
        var output = PerHead(ValueSize, v.dtype, device);
        var finalState = _outputFinalState ? States(device) : null;
        var states = saved is null ? null : Scratch.Empty([kernels.SavedStateCount], device: device);
        kernels.Forward(q.View(), k.View(), v.View(), g.View(), TensorPointer.Of(initialState), output.View(),
            TensorPointer.Of(finalState), TensorPointer.Of(states));
        GC.KeepAlive((q, k, v, g, initialState, offsets));

        saved?.Save(inputs[0], inputs[1], inputs[2], inputs[3], states, offsets);
        return [output, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (q, k, v, g) = (saved[0]!.DenseRows(), saved[1]!.DenseRows(), saved[2]!.DenseRows(), saved[3]!.DenseRows());
        var (states, offsets, device) = (saved[4], saved[5], q.device);
        var output = gradOutputs[0]?.DenseRows() ?? PerHead(ValueSize, v.dtype, device).zero_();
        var finalState = gradOutputs[1]?.Dense();
        var initialState = saved.NeedsGrad[4] ? States(device) : null;
        var (dq, dk) = (PerHead(KeySize, q.dtype, device), PerHead(KeySize, q.dtype, device));
        var (dv, dg) = (PerHead(ValueSize, v.dtype, device), PerHead(KeySize, g.dtype, device));
        Kernels(offsets).Backward(q.View(), k.View(), v.View(), g.View(), output.View(), dq.View(), dk.View(), dv.View(),
            dg.View(), TensorPointer.Of(states), TensorPointer.Of(finalState), TensorPointer.Of(initialState));
        GC.KeepAlive((q, k, v, g, output, offsets));
        GC.KeepAlive((states, finalState));
        return [dq, SumGroups(dk, k.dtype), SumGroups(dv, v.dtype), SumGroups(dg, g.dtype), initialState];
    }

    private GlaSmallKernels Kernels(Tensor? offsets) => new()
    {
        Device = Gpu,
        Tile = _tile,
        Time = Time,
        Sequences = Layout(offsets),
        Heads = Heads,
        KvHeads = KvHeads,
        KeySize = KeySize,
        ValueSize = ValueSize,
        Scale = Scale,
    };
}
