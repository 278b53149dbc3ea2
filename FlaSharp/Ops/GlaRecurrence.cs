using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The GLA recurrence on the CPU, with <see cref="GlaRecurrenceCpu"/>.</summary>
internal sealed unsafe class GlaRecurrence : FlaFunction
{
    private readonly GlaCall _call;
    private readonly bool _outputFinalState;
    private readonly bool _updateState;

    private GlaRecurrence(GlaCall call, bool outputFinalState, bool updateState) =>
        (_call, _outputFinalState, _updateState) = (call, outputFinalState, updateState);

    /// <summary>Shapes and options as in <see cref="FlaOps.Gla"/>, checked by the caller.</summary>
    public static (Tensor output, Tensor? finalState) Run(Tensor q, Tensor k, Tensor v, Tensor g, double scale,
        Tensor? initialState, Sequences sequences, bool reverse, bool outputFinalState, bool updateState = false)
    {
        var call = new GlaCall(sequences.Offsets)
        {
            Heads = checked((int)q.Size(2)),
            KvHeads = checked((int)k.Size(2)),
            KeySize = checked((int)q.Size(3)),
            ValueSize = checked((int)v.Size(3)),
            Scale = (float)scale,
            Reverse = reverse,
        };
        var outputs = new GlaRecurrence(call, outputFinalState, updateState).Run(q, k, v, g, initialState);
        return (outputs[0]!, updateState && outputFinalState ? initialState : outputs[1]);
    }

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (q, k, v, g) = (Rows(inputs[0]!), Rows(inputs[1]!), Rows(inputs[2]!), Rows(inputs[3]!));
        var initialState = inputs[4]?.contiguous();
        var output = PerHead(q, _call.ValueSize);
        var finalState = _outputFinalState && !_updateState ? States(_call.SequenceCount) : null;
        var checkpoints = saved is null ? null : States(_call.CheckpointCount);
        GlaRecurrenceCpu.Forward(_call, Pointer(q), Pointer(k), Pointer(v), Pointer(g), Pointer(initialState),
            Pointer(output), Pointer(_updateState ? initialState : finalState), Pointer(checkpoints));
        GC.KeepAlive((q, k, v, g, initialState, checkpoints));

        saved?.Save(inputs[0], inputs[1], inputs[2], inputs[3], inputs[4], checkpoints);
        return [output.to(inputs[2]!.dtype), finalState];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (q, k, v, g) = (Rows(saved[0]!), Rows(saved[1]!), Rows(saved[2]!), Rows(saved[3]!));
        var (initialState, checkpoints) = (saved[4]?.contiguous(), saved[5]);
        var output = gradOutputs[0] is { } gradient ? Rows(gradient) : PerHead(q, _call.ValueSize).zero_();
        var finalState = gradOutputs[1]?.contiguous();
        var needs = saved.NeedsGrad;

        Tensor? dv = null;
        if (needs[2])
        {
            dv = PerHead(q, _call.ValueSize);
            GlaRecurrenceCpu.BackwardValue(_call, Pointer(q), Pointer(k), Pointer(g),
                Pointer(output), Pointer(finalState), Pointer(dv));
        }
        Tensor? dq = null, dk = null, dg = null, dInitialState = null;
        if (needs[0] || needs[1] || needs[3] || needs[4])
        {
            (dq, dk, dg) = (PerHead(q, _call.KeySize), PerHead(q, _call.KeySize), PerHead(q, _call.KeySize));
            dInitialState = needs[4] ? States(_call.SequenceCount) : null;
            GlaRecurrenceCpu.BackwardKey(_call, Pointer(q), Pointer(k), Pointer(v), Pointer(g), Pointer(initialState),
                Pointer(checkpoints), Pointer(output), Pointer(finalState),
                Pointer(dq), Pointer(dk), Pointer(dg), Pointer(dInitialState));
        }
        GC.KeepAlive((q, k, v, g, initialState, checkpoints, output));
        GC.KeepAlive(finalState);
        return
        [
            dq?.to(saved[0]!.dtype), SumGroups(dk)?.to(saved[1]!.dtype), SumGroups(dv)?.to(saved[2]!.dtype),
            SumGroups(dg)?.to(saved[3]!.dtype), dInitialState,
        ];
    }

    private static float* Pointer(Tensor? tensor) => TensorPointer.Float32(tensor);

    private static Tensor Rows(Tensor x) => x.to(ScalarType.Float32).contiguous();

    /// <summary>Uninitialised [B, T, H, size].</summary>
    private static Tensor PerHead(Tensor q, long size) => Scratch.Empty([q.Size(0), q.Size(1), q.Size(2), size]);

    /// <summary>Uninitialised [count, H, K, V].</summary>
    private Tensor States(long count) => Scratch.Empty([count, _call.Heads, _call.KeySize, _call.ValueSize]);

    /// <summary>[B, T, H, ...] to [B, T, Hkv, ...], head by head: the order of a sum must not depend on the threads.</summary>
    private Tensor? SumGroups(Tensor? perHead)
    {
        if (perHead is null || _call.Heads == _call.KvHeads)
            return perHead;
        var groups = perHead.unflatten(2, _call.KvHeads, -1);
        var sum = groups.select(3, 0).clone();
        for (var i = 1; i < groups.Size(3); i++)
            sum.add_(groups.select(3, i), HeldScalar.One);
        return sum;
    }
}
