using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Norm;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>x, gate [..., D], weight [D]? -> y [..., D], by the CPU kernel.</summary>
internal sealed unsafe class GatedRmsNormFunction(double eps, bool isSwish, bool normBeforeGate, long groupSize) : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (x, gate, weight) = (inputs[0]!, inputs[1]!, inputs[2]);
        saved?.Save(x, gate, weight);

        var (denseX, denseGate, denseWeight) = (x.DenseFloat32(), gate.DenseFloat32(), weight?.DenseFloat32());
        var y = Scratch.EmptyLike(denseX);
        Kernel(x).Forward(TensorPointer.Float32(denseX), TensorPointer.Float32(denseGate),
            TensorPointer.Float32(denseWeight), TensorPointer.Float32(y));
        GC.KeepAlive((denseX, denseGate, denseWeight));
        return [y.InDtype(x.dtype)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } gradient)
            return [null, null, null];
        var (x, gate, weight) = (saved[0]!, saved[1]!, saved[2]);
        var (denseX, denseGate, denseWeight) = (x.DenseFloat32(), gate.DenseFloat32(), weight?.DenseFloat32());
        var dy = gradient.DenseFloat32();
        var (dx, dGate) = (Scratch.EmptyLike(denseX), Scratch.EmptyLike(denseX));
        var dWeight = saved.NeedsGrad[2] ? Scratch.EmptyLike(denseWeight!) : null;
        Kernel(x).Backward(TensorPointer.Float32(denseX), TensorPointer.Float32(denseGate), TensorPointer.Float32(denseWeight),
            TensorPointer.Float32(dy), TensorPointer.Float32(dx), TensorPointer.Float32(dGate), TensorPointer.Float32(dWeight));
        GC.KeepAlive((denseX, denseGate, denseWeight, dy));
        return [dx.InDtype(x.dtype), dGate.InDtype(gate.dtype), dWeight?.InDtype(weight!.dtype)];
    }

    private GatedRmsNormCpu Kernel(Tensor x) => new()
    {
        Rows = x.numel() / x.size(-1),
        Size = x.size(-1),
        GroupSize = groupSize,
        Eps = (float)eps,
        IsSwish = isSwish,
        NormBeforeGate = normBeforeGate,
    };
}
