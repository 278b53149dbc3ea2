using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Norm;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>x [..., D], weight [D]? -> y [..., D], by the CPU kernel.</summary>
internal sealed unsafe class RmsNormFunction(double eps) : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (x, weight) = (inputs[0]!, inputs[1]);
        saved?.Save(x, weight);

        var (denseX, denseWeight) = (x.DenseFloat32(), weight?.DenseFloat32());
        var y = Scratch.EmptyLike(denseX);
        var size = x.size(-1);
        RmsNormCpu.Forward(TensorPointer.Float32(denseX), TensorPointer.Float32(denseWeight), TensorPointer.Float32(y),
            x.numel() / size, size, (float)eps);
        GC.KeepAlive((denseX, denseWeight));
        return [y.InDtype(x.dtype)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } gradient)
            return [null, null];
        var (x, weight) = (saved[0]!, saved[1]);
        var (denseX, denseWeight, dy) = (x.DenseFloat32(), weight?.DenseFloat32(), gradient.DenseFloat32());
        var dx = Scratch.EmptyLike(denseX);
        var dWeight = saved.NeedsGrad[1] ? Scratch.EmptyLike(denseWeight!) : null;
        var size = x.size(-1);
        RmsNormCpu.Backward(TensorPointer.Float32(denseX), TensorPointer.Float32(denseWeight), TensorPointer.Float32(dy),
            TensorPointer.Float32(dx), TensorPointer.Float32(dWeight), x.numel() / size, size, (float)eps);
        GC.KeepAlive((denseX, denseWeight, dy));
        return [dx.InDtype(x.dtype), dWeight?.InDtype(weight!.dtype)];
    }
}
