using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Rotary;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// The rotary embedding on a GPU: <see cref="RotaryKernels"/> as an operation of autograd. x [B, T, H, K], positions int32 or
/// int64 [T] or [B, T] (or none: offset, offset + 1, ...) -> y [B, T, H, K].
/// </summary>
internal sealed class RotaryCudaFunction(double theta, long rotaryDim, bool interleaved, long offset = 0) : FlaFunction
{
    protected override Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        saved?.Save(inputs[1]);
        return [Turn(inputs[0]!, inputs[1], inverse: false)];
    }

    protected override Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs) =>
        [gradOutputs[0] is { } gradient ? Turn(gradient, saved[0], inverse: true) : null, null];

    private Tensor Turn(Tensor x, Tensor? positions, bool inverse)
    {
        x = x.DenseRows();
        var y = Scratch.Dense(x, x.dtype);
        var time = checked((int)x.Size(1));
        var kernels = new RotaryKernels(GpuDevice.Get(Math.Max(0, x.device_index)))
        {
            Tokens = checked((int)x.Size(0) * time),
            Time = time,
            Heads = checked((int)x.Size(2)),
            Size = checked((int)x.Size(3)),
            Element = x.dtype.Element()!.Value,
            IsInterleaved = interleaved,
            Turns = RotaryTurns.Of(theta, (int)rotaryDim, inverse),
        };
        kernels.Turn(x.View(), Positions(positions), y.View());
        GC.KeepAlive((x, positions));
        return y;
    }

    private RotaryPositions Positions(Tensor? positions)
    {
        if (positions is null)
            return new RotaryPositions(0, 0, 0, offset, IsLong: false);
        var last = positions.Rank() - 1;
        return new RotaryPositions(TensorPointer.Of(positions), last == 0 ? 0 : positions.Stride(0), positions.Stride(last), 0,
            positions.dtype == ScalarType.Int64);
    }
}
