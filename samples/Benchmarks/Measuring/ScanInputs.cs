using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>One set of inputs of the selective scan, as a Mamba layer has them, and what a user does with it.</summary>
internal sealed class ScanInputs : IDisposable
{
    private readonly Tensor[] _inputs; // u, delta, a, b, c, d, z, delta bias
    private readonly Tensor _outputGradient;

    public ScanInputs(ScanShape shape, ScalarType dtype, Device device)
    {
        using Tensor rates = arange(1, shape.N + 1, float32, device).repeat(shape.E, 1);
        _inputs =
        [
            Leaf(Tokens(shape.E)), Leaf(Tokens(shape.E)), Leaf(-rates), Leaf(Tokens(shape.N)), Leaf(Tokens(shape.N)),
            Leaf(ones([shape.E], float32, device)), Leaf(Tokens(shape.E)), Leaf(randn([shape.E], float32, device) - 4),
        ];
        _outputGradient = Tokens(shape.E).DetachFromDisposeScope();

        Tensor Tokens(long size) => randn([shape.B, shape.T, size], dtype, device);
        static Tensor Leaf(Tensor values) => values.DetachFromDisposeScope().requires_grad_();
    }

    /// <summary>Of one set, with the gradient of the output.</summary>
    public static long Bytes(ScanShape shape, ScalarType dtype) => 4 * shape.Elements * dtype.ElementSize();

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

    private Tensor Run() => FlaOps.SelectiveScan(_inputs[0], _inputs[1], _inputs[2], _inputs[3], _inputs[4], _inputs[5],
        _inputs[6], _inputs[7], deltaSoftplus: true).output;
}
