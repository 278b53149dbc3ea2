using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>One set of inputs of an operation, and what a user does with it.</summary>
/// <param name="inputs">Leaves outside every dispose scope.</param>
/// <param name="outputGradient">Likewise.</param>
/// <param name="run">The operation's output, computed in one of its ways.</param>
internal sealed class OperationInputs(Tensor[] inputs, Tensor outputGradient, Func<Tensor[], string, Tensor> run) : IDisposable
{
    /// <summary>The output, without a graph.</summary>
    public Tensor Forward(string way)
    {
        using IDisposable _ = no_grad();
        return run(inputs, way);
    }

    /// <summary>Forward, and backward to the gradients of all inputs, through autograd.</summary>
    public void ForwardBackward(string way)
    {
        using DisposeScope scope = NewDisposeScope();
        foreach (Tensor gradient in autograd.grad([run(inputs, way)], inputs, [outputGradient]))
            gradient.Dispose();
    }

    public void Dispose()
    {
        foreach (Tensor tensor in inputs.Append(outputGradient))
            tensor.Dispose();
    }

    /// <summary>Normally distributed.</summary>
    public static Tensor Normal(ScalarType dtype, Device device, params long[] sizes) =>
        randn(sizes, dtype, device).DetachFromDisposeScope();

    /// <summary>An input that a gradient is wanted of.</summary>
    public static Tensor Leaf(Tensor values) => values.DetachFromDisposeScope().requires_grad_();
}
