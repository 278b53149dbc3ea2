using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The recurrence of gated linear attention on a GPU, with <see cref="GlaRecurrentKernels"/>.</summary>
internal sealed class GlaRecurrentCudaFunction : GlaCudaFunction
{
    private readonly bool _outputFinalState;
    private readonly bool _updateState;

    private GlaRecurrentCudaFunction(
        Tensor q, Tensor k, Tensor v, double scale, Sequences sequences, bool reverse, bool outputFinalState, bool updateState)
        : base(q, k, v, scale, sequences, reverse) => (_outputFinalState, _updateState) = (outputFinalState, updateState);

    /// <summary>
    /// Shapes and options as in <see cref="FlaOps.Gla"/>, checked by the caller; K and V at most
    /// <see cref="GlaRecurrentTile.MaxSize"/>.
    /// </summary>
    public static (Tensor output, Tensor? finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, double scale,
        Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState, bool updateState = false)
    {
        var function = new GlaRecurrentCudaFunction(q, k, v, scale, sequences, reverse, outputFinalState, updateState);
        var outputs = function.Run(q, k, v, g, initialState);
        return (outputs[0]!, updateState && outputFinalState ? initialState : outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (q, k, v, g) = (inputs[0]!.DenseRows(), inputs[1]!.DenseRows(), inputs[2]!.DenseRows(), inputs[3]!.DenseRows());
        var (initialState, device) = (inputs[4]?.Dense(), q.device);
        var offsets = Sequences.OffsetsOn(device);
        var output = PerHead(ValueSize, v.dtype, device);
        var finalState = _outputFinalState && !_updateState ? States(device) : null;
        Kernels(q, g, offsets).Forward(
            q.View(), k.View(), v.View(), g.View(), TensorPointer.Of(initialState), output.View(),
            TensorPointer.Of(_updateState ? initialState : finalState));
        GC.KeepAlive((q, k, v, g, initialState, offsets));

        saved?.Save(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], offsets);
        return [output, finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (q, k, v, g) = (saved[0]!.DenseRows(), saved[1]!.DenseRows(), saved[2]!.DenseRows(), saved[3]!.DenseRows());
        var (initialState, offsets, device) = (saved[4]?.Dense(), saved[5], q.device);
        var output = gradOutputs[0]?.DenseRows() ?? PerHead(ValueSize, v.dtype, device).zero_();
        var finalState = gradOutputs[1]?.Dense();
        var kernels = Kernels(q, g, offsets);
        var needs = saved.NeedsGrad;
        var shared = Heads != KvHeads; // then the gradients of several heads are added up, in float32

        Tensor? dq = null, dk = null, dv = null, dg = null, dInitialState = null;
        if (needs[2] || needs[4])
        {
            dv = PerHead(ValueSize, shared ? ScalarType.Float32 : v.dtype, device);
            dInitialState = needs[4] ? States(device) : null;
            kernels.BackwardValue(q.View(), k.View(), g.View(), output.View(), TensorPointer.Of(finalState), dv.View(),
                TensorPointer.Of(dInitialState), shared);
        }
        Tensor? product = null, states = null;
        if (needs[0] || needs[3])
        {
            dq = PerHead(KeySize, q.dtype, device);
            product = needs[3] ? PerHead(KeySize, ScalarType.Float32, device) : null;
            states = needs[3] ? Scratch.Empty([kernels.SavedStateCount], device: device) : null;
            kernels.BackwardQuery(q.View(), k.View(), v.View(), g.View(), TensorPointer.Of(initialState), output.View(),
                dq.View(), product.View(), TensorPointer.Of(states));
        }
        if (needs[1] || needs[3])
        {
            dk = PerHead(KeySize, shared ? ScalarType.Float32 : k.dtype, device);
            dg = needs[3] ? PerHead(KeySize, shared ? ScalarType.Float32 : g.dtype, device) : null;
            kernels.BackwardKey(q.View(), k.View(), v.View(), g.View(), output.View(), TensorPointer.Of(finalState),
                product.View(), TensorPointer.Of(states), dk.View(), dg.View(), shared);
        }
        GC.KeepAlive((q, k, v, g, initialState, offsets, output));
        GC.KeepAlive((finalState, product, states));
        return
        [
            dq, dk is null ? null : SumGroups(dk, k.dtype), dv is null ? null : SumGroups(dv, v.dtype),
            dg is null ? null : SumGroups(dg, g.dtype), dInitialState,
        ];
    }

    private GlaRecurrentKernels Kernels(Tensor q, Tensor g, Tensor? offsets) => new(Gpu)
    {
        Tokens = Sequences.Tokens,
        Sequences = Layout(offsets),
        Heads = Heads,
        KvHeads = KvHeads,
        KeySize = KeySize,
        ValueSize = ValueSize,
        Scale = Scale,
        Element = q.dtype.Element()!.Value,
        Gate = g.dtype.Element()!.Value,
    };
}
