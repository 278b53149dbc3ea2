using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>One set of inputs of a <see cref="RowOperation"/>, normally distributed.</summary>
internal sealed class RowInputs : IDisposable
{
    private const int Width = 4; // of the convolution, as Mamba has it

    private readonly Tensor _outputGradient;

    public RowInputs(long time, long channels, ScalarType dtype, Device device)
    {
        (X, Second) = (Leaf(1, time, channels), Leaf(1, time, channels));
        (Taps, Bias, Weight) = (Leaf(channels, Width), Leaf(channels), Leaf(channels));
        _outputGradient = randn([1, time, channels], dtype, device).DetachFromDisposeScope();

        Tensor Leaf(params long[] shape) => randn(shape, dtype, device).DetachFromDisposeScope().requires_grad_();
    }

    /// <summary>[1, T, E].</summary>
    public Tensor X { get; }

    /// <summary>[1, T, E]: a gate or a residual.</summary>
    public Tensor Second { get; }

    /// <summary>[E, W].</summary>
    public Tensor Taps { get; }

    /// <summary>[E].</summary>
    public Tensor Bias { get; }

    /// <summary>[E].</summary>
    public Tensor Weight { get; }

    /// <summary>The outputs, without a graph.</summary>
    public void Forward(RowOperation operation)
    {
        using IDisposable _ = no_grad();
        operation.Run(this);
    }

    /// <summary>Forward, and backward to the gradients of all that the operation reads, through autograd.</summary>
    public void ForwardBackward(RowOperation operation)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor[] outputs = operation.Run(this);
        Tensor[] weights = operation.Name == "conv1d" ? [Taps, Bias] : [Weight];
        foreach (Tensor gradient in autograd.grad(outputs, operation.HasSecond ? [X, Second, .. weights] : [X, .. weights],
            [.. outputs.Select(_ => _outputGradient)]))
            gradient.Dispose();
    }

    public void Dispose()
    {
        foreach (Tensor tensor in new[] { X, Second, Taps, Bias, Weight, _outputGradient })
            tensor.Dispose();
    }
}
