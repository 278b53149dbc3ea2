using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Activation;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>gate, up of one shape -> silu(gate) * up, by the CPU kernel.</summary>
internal sealed unsafe class SwiGluFunction : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (gate, up) = (inputs[0]!, inputs[1]!);
        saved?.Save(gate, up);

        var (denseGate, denseUp) = (gate.DenseFloat32(), up.DenseFloat32());
        var y = Scratch.EmptyLike(denseGate);
        SwiGluCpu.Forward(TensorPointer.Float32(denseGate), TensorPointer.Float32(denseUp), TensorPointer.Float32(y), y.numel());
        GC.KeepAlive((denseGate, denseUp));
        return [y.InDtype(gate.dtype)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } gradient)
            return [null, null];
        var (gate, up) = (saved[0]!, saved[1]!);
        var (denseGate, denseUp, dy) = (gate.DenseFloat32(), up.DenseFloat32(), gradient.DenseFloat32());
        var (dGate, dUp) = (Scratch.EmptyLike(denseGate), Scratch.EmptyLike(denseGate));
        SwiGluCpu.Backward(TensorPointer.Float32(denseGate), TensorPointer.Float32(denseUp), TensorPointer.Float32(dy),
            TensorPointer.Float32(dGate), TensorPointer.Float32(dUp), dy.numel());
        GC.KeepAlive((denseGate, denseUp, dy));
        return [dGate.InDtype(gate.dtype), dUp.InDtype(up.dtype)];
    }
}
