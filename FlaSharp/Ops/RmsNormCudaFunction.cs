using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Norm;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>x, gate [..., D]?, weight [D]? -> y [..., D], by the CUDA kernels. The last two options are the gate's.</summary>
internal sealed class RmsNormCudaFunction(double eps, long groupSize, bool isSwish = true, bool normBeforeGate = true)
    : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (x, gate, weight) = (inputs[0]!, inputs[1], inputs[2]);
        var kernels = Kernels(x, weight);
        var scales = saved is null ? null : Scratch.Empty([kernels.Rows, kernels.Groups], device: x.device);
        saved?.Save(x, gate, weight, scales);

        var y = Scratch.Dense(x, x.dtype);
        var (denseX, denseGate, denseWeight) = (x.DenseRows(out var rowX), gate.DenseRows(out var rowGate), weight?.Dense());
        kernels.Forward(Matrix(denseX, rowX), Matrix(denseGate, rowGate), TensorPointer.Of(denseWeight), Matrix(y, x.LastSize()),
            TensorPointer.Of(scales));
        GC.KeepAlive((denseX, denseGate, denseWeight, scales));
        return [y];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } dy)
            return [null, null, null];
        var (x, gate, weight, scales) = (saved[0]!, saved[1], saved[2], saved[3]!);
        var (size, device) = (x.LastSize(), x.device);
        var dx = Scratch.Dense(x, x.dtype);
        var dGate = gate is null ? null : Scratch.Dense(x, x.dtype);
        Tensor? parts = null;
        var (denseX, denseGate, denseWeight) = (x.DenseRows(out var rowX), gate.DenseRows(out var rowGate), weight?.Dense());
        var denseDy = dy.InDtype(x.dtype).DenseRows(out var rowDy);
        Kernels(x, weight).Backward(Matrix(denseX, rowX), Matrix(denseGate, rowGate), TensorPointer.Of(denseWeight),
            TensorPointer.Of(scales), Matrix(denseDy, rowDy), Matrix(dx, size), Matrix(dGate, size),
            saved.NeedsGrad[2] ? count => TensorPointer.Of(parts = Scratch.Empty([count, size], device: device)) : null);
        GC.KeepAlive((denseX, denseGate, denseWeight, scales, denseDy));
        return [dx, dGate, parts?.sum(dim: 0).InDtype(weight!.dtype)];
    }

    private static NormMatrix Matrix(Tensor? tensor, long row) => tensor is null ? default : new(TensorPointer.Of(tensor), row);

    private RmsNormKernels Kernels(Tensor x, Tensor? weight) => new(GpuDevice.Get(Math.Max(0, x.device_index)))
    {
        Rows = x.numel() / x.LastSize(),
        Groups = checked((int)(x.LastSize() / groupSize)),
        Size = (int)groupSize,
        Element = x.dtype.Element()!.Value,
        FloatWeight = weight?.dtype == ScalarType.Float32,
        Eps = (float)eps,
        IsSwish = isSwish,
        GateFirst = !normBeforeGate,
    };
}
