using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Gla;
using FlaSharp.Kernels.Runtime;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>x -> max(logsigmoid(x) / normalizer, minimum) of the same shape in float32, by the CUDA kernels.</summary>
internal sealed class DecayGateCudaFunction(double normalizer, double? minimum) : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var x = inputs[0]!.Dense();
        saved?.Save(x);
        var g = Scratch.Dense(x, ScalarType.Float32);
        Kernels(x).Forward(TensorPointer.Of(x), TensorPointer.Of(g));
        GC.KeepAlive(x);
        return [g];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        if (gradOutputs[0] is not { } gradient)
            return [null];
        var (x, dg) = (saved[0]!, gradient.Dense());
        var dx = Scratch.Dense(x, x.dtype);
        Kernels(x).Backward(TensorPointer.Of(x), TensorPointer.Of(dg), TensorPointer.Of(dx));
        GC.KeepAlive((x, dg));
        return [dx];
    }

    private DecayGateKernels Kernels(Tensor x) => new(GpuDevice.Get(Math.Max(0, x.device_index)))
    {
        Count = x.numel(),
        Element = x.dtype.Element()!.Value,
        Normalizer = (float)normalizer,
        Minimum = (float)(minimum ?? double.NegativeInfinity),
    };
}
