using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>One set of inputs of the state space duality, as a Mamba-2 layer has them, and what a user does with it.</summary>
internal sealed class SsdInputs : IDisposable
{
    private readonly Tensor[] _inputs; // x, dt, a, b, c, d, dt bias
    private readonly Tensor _outputGradient;

    public SsdInputs(SsdShape shape, ScalarType dtype, Device device)
    {
        using Tensor rates = (rand([shape.H], float32, device) * 15) + 1;
        _inputs =
        [
            Leaf(Normal(shape.B, shape.T, shape.H, shape.P)), Leaf(Normal(shape.B, shape.T, shape.H)),
            Leaf(-rates), Leaf(Normal(shape.B, shape.T, 1, shape.N)), Leaf(Normal(shape.B, shape.T, 1, shape.N)),
            Leaf(ones([shape.H], float32, device)), Leaf(randn([shape.H], float32, device) - 4),
        ];
        _outputGradient = Normal(shape.B, shape.T, shape.H, shape.P).DetachFromDisposeScope();

        Tensor Normal(params long[] sizes) => randn(sizes, dtype, device);
        static Tensor Leaf(Tensor values) => values.DetachFromDisposeScope().requires_grad_();
    }

    /// <summary>Of one set, with the gradient of the output.</summary>
    public static long Bytes(SsdShape shape, ScalarType dtype) =>
        ((2 * shape.Elements) + (2 * shape.SharedElements)) * dtype.ElementSize();

    /// <summary>The output, without a graph.</summary>
    public Tensor Forward()
    {
        using IDisposable _ = no_grad();
        return Run();
    }

    /// <summary>Forward, and backward to the gradients of all inputs, through autograd.</summary>
    public void ForwardBackward()
    {
        using DisposeScope scope = NewDisposeScope();
        foreach (Tensor gradient in autograd.grad([Run()], _inputs, [_outputGradient]))
            gradient.Dispose();
    }

    public void Dispose()
    {
        foreach (Tensor tensor in _inputs.Append(_outputGradient))
            tensor.Dispose();
    }

    private Tensor Run() => FlaOps.Ssd(_inputs[0], _inputs[1], _inputs[2], _inputs[3], _inputs[4], _inputs[5],
        dtBias: _inputs[6], dtSoftplus: true).output;
}
