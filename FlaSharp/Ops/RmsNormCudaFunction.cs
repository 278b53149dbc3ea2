using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Norm;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// x, gate [..., D]?, weight [D]?, residual [..., D]? -> y [..., D], x + residual?, by the CUDA kernels. There is no residual
/// beside a gate, whose options are the last two.
/// </summary>
internal sealed class RmsNormCudaFunction(double eps, long groupSize, bool isSwish = true, bool normBeforeGate = true)
    : FlaFunction
{
    private bool _isAdded;
    private ScalarType _element; // of x and y

    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var (x, gate, weight, residual) = (inputs[0]!, inputs[1], inputs[2], inputs[3]);
        (_isAdded, _element) = (residual is not null, x.dtype);
        var (y, size) = (Scratch.Dense(x, x.dtype), x.LastSize());
        var sum = residual is null ? null : Scratch.Dense(x, residual.dtype);
        var kernels = Kernels(sum ?? x, weight);
        var scales = saved is null ? null : Scratch.Empty([kernels.Rows, kernels.Groups], device: x.device);
        saved?.Save(sum ?? x, gate, weight, scales);

        var (denseX, denseGate, denseWeight) = (x.DenseRows(out var rowX), gate.DenseRows(out var rowGate), weight?.Dense());
        var denseResidual = residual.DenseRows(out var rowResidual);
        kernels.Forward(Matrix(denseX, rowX), Matrix(denseGate, rowGate), Matrix(denseResidual, rowResidual),
            TensorPointer.Of(denseWeight), Matrix(sum, size), Matrix(y, size), TensorPointer.Of(scales));
        GC.KeepAlive((denseX, denseGate, denseResidual, denseWeight, scales));
        return [y, sum];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var (x, gate, weight, scales) = (saved[0]!, saved[1], saved[2], saved[3]!);
        var (dy, dSum) = (gradOutputs[0], gradOutputs[1]);
        var (size, device) = (x.LastSize(), x.device);
        if (dy is null)
            return [dSum?.InDtype(_element), null, null, dSum?.InDtype(x.dtype)];

        var dx = Scratch.Dense(x, _element);
        var dGate = gate is null ? null : saved.NewGradient(1, gate);
        var dResidual = _isAdded ? Scratch.Dense(x, x.dtype) : null;
        var denseDGate = dGate.DenseRows(out var rowDGate);
        Tensor? parts = null;
        var (denseX, denseGate, denseWeight) = (x.DenseRows(out var rowX), gate.DenseRows(out var rowGate), weight?.Dense());
        var (denseDy, wideDSum) = (dy.InDtype(_element).DenseRows(out var rowDy), dSum?.InDtype(x.dtype));
        var denseDSum = wideDSum.DenseRows(out var rowDSum);
        Kernels(x, weight).Backward(Matrix(denseX, rowX), Matrix(denseGate, rowGate), TensorPointer.Of(denseWeight),
            TensorPointer.Of(scales), Matrix(denseDy, rowDy), Matrix(denseDSum, rowDSum), Matrix(dx, size),
            Matrix(denseDGate, rowDGate), Matrix(dResidual, size),
            saved.NeedsGrad[2] ? count => TensorPointer.Of(parts = Scratch.Empty([count, size], device: device)) : null);
        GC.KeepAlive((denseX, denseGate, denseWeight, scales, denseDy, denseDSum));
        if (!ReferenceEquals(dGate, denseDGate))
            dGate!.copy_(denseDGate!);
        return [dx, dGate, parts?.sum(dim: 0).InDtype(weight!.dtype), dResidual];
    }

    private static NormMatrix Matrix(Tensor? tensor, long row) => tensor is null ? default : new(TensorPointer.Of(tensor), row);

    private RmsNormKernels Kernels(Tensor x, Tensor? weight) => new(GpuDevice.Get(Math.Max(0, x.device_index)))
    {
        Rows = x.numel() / x.LastSize(),
        Groups = checked((int)(x.LastSize() / groupSize)),
        Size = (int)groupSize,
        Element = _element.Element()!.Value,
        Stream = x.dtype.Element()!.Value,
        FloatWeight = weight?.dtype == ScalarType.Float32,
        Eps = (float)eps,
        IsSwish = isSwish,
        GateFirst = !normBeforeGate,
    };
}
