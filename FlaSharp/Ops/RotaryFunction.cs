using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Rotary;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>x [B, T, H, K], cos and sin [T or B, T, rotaryDim / 2] (constants) -> y [B, T, H, K], by the CPU kernel.</summary>
internal sealed unsafe class RotaryFunction(bool interleaved) : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        saved?.Save(inputs[1], inputs[2]);
        return [Rotate(inputs[0]!, inputs[1]!, inputs[2]!, inverse: false)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs) =>
        [gradOutputs[0] is { } gradient ? Rotate(gradient, saved[0]!, saved[1]!, inverse: true) : null, null, null];

    private Tensor Rotate(Tensor x, Tensor cos, Tensor sin, bool inverse)
    {
        var wide = x.InDtype(ScalarType.Float32);
        if (wide.stride(-1) != 1)
            wide = wide.contiguous();
        var (denseCos, denseSin) = (cos.DenseFloat32(), sin.DenseFloat32());
        var y = Scratch.Empty(x.shape);
        var kernel = new RotaryCpu
        {
            Batch = x.size(0),
            Time = x.size(1),
            Heads = x.size(2),
            HeadSize = x.size(3),
            RotaryDim = 2 * cos.size(-1),
            Interleaved = interleaved,
            Inverse = inverse,
            Strides = (wide.stride(0), wide.stride(1), wide.stride(2)),
            AngleBatchStride = cos.dim() == 3 ? cos.size(1) * cos.size(2) : 0,
        };
        kernel.Run(TensorPointer.Float32(wide), TensorPointer.Float32(denseCos), TensorPointer.Float32(denseSin),
            TensorPointer.Float32(y));
        GC.KeepAlive((wide, denseCos, denseSin));
        return y.InDtype(x.dtype);
    }
}
