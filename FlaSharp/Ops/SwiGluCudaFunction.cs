using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Activation;
using FlaSharp.Kernels.Runtime;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>gate, up of one shape -> silu(gate) * up, by the CUDA kernels.</summary>
internal sealed class SwiGluCudaFunction : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (gate, up) = (inputs[0]!.Dense(), inputs[1]!.Dense());
        saved?.Save(inputs[0], inputs[1]);
        var y = Scratch.Dense(gate, gate.dtype);
        Kernels(gate).Forward(TensorPointer.Of(gate), TensorPointer.Of(up), TensorPointer.Of(y));
        GC.KeepAlive((gate, up));
        return [y];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } gradient)
            return [null, null];
        var (gate, up, dy) = (saved[0]!.Dense(), saved[1]!.Dense(), gradient.Dense());
        var (dGate, dUp) = (Scratch.Dense(gate, gate.dtype), Scratch.Dense(gate, gate.dtype));
        Kernels(gate).Backward(TensorPointer.Of(gate), TensorPointer.Of(up), TensorPointer.Of(dy), TensorPointer.Of(dGate),
            TensorPointer.Of(dUp));
        GC.KeepAlive((gate, up, dy));
        return [dGate, dUp];
    }

    private static SwiGluKernels Kernels(Tensor gate) => new(GpuDevice.Get(Math.Max(0, gate.device_index)))
    {
        Count = gate.numel(),
        Element = gate.dtype.Element()!.Value,
    };
}
