using FlaSharp;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>One set of inputs of gated linear attention, and what a user does with it.</summary>
internal sealed class GlaInputs : IDisposable
{
    private const double SmallestGate = -5;
    private const int Tensors = 5;

    private readonly Tensor _outputGradient;

    /// <summary>
    /// Normally distributed; the gates are log-sigmoids of such values, cut off at -5, as fla's benchmark has them.
    /// </summary>
    public GlaInputs(GlaShape shape, ScalarType dtype, Device device)
    {
        (Q, K, V) = (Leaf(Normal()), Leaf(Normal()), Leaf(Normal()));
        using Tensor gates = Normal();
        using Tensor logSigmoid = nn.functional.logsigmoid(gates);
        G = Leaf(logSigmoid.clamp_min(SmallestGate));
        _outputGradient = Normal();

        Tensor Normal() => randn([shape.B, shape.T, shape.H, shape.D], dtype, device).DetachFromDisposeScope();
        static Tensor Leaf(Tensor values) => values.DetachFromDisposeScope().requires_grad_();
    }

    public Tensor Q { get; }

    public Tensor K { get; }

    public Tensor V { get; }

    public Tensor G { get; }

    /// <summary>Of one set, with the gradient of the output.</summary>
    public static long Bytes(GlaShape shape, ScalarType dtype) => Tensors * shape.Elements * dtype.ElementSize();

    /// <summary>The output, without a graph.</summary>
    public Tensor Forward(LinearAttentionMode mode, Tensor? cuSeqlens = null)
    {
        using IDisposable _ = no_grad();
        return FlaOps.Gla(Q, K, V, G, mode, cuSeqlens: cuSeqlens).output;
    }

    /// <summary>Forward, and backward to the gradients of q, k, v and g, through autograd.</summary>
    /// <param name="mode">Of the operation.</param>
    /// <param name="cuSeqlens">The bounds of packed sequences.</param>
    /// <param name="between">Called after forward.</param>
    public void ForwardBackward(LinearAttentionMode mode, Tensor? cuSeqlens = null, Action? between = null)
    {
        using DisposeScope scope = NewDisposeScope();
        Tensor output = FlaOps.Gla(Q, K, V, G, mode, cuSeqlens: cuSeqlens).output;
        between?.Invoke();
        foreach (Tensor gradient in autograd.grad([output], [Q, K, V, G], [_outputGradient]))
            gradient.Dispose();
    }

    public void Dispose()
    {
        foreach (Tensor tensor in new[] { Q, K, V, G, _outputGradient })
            tensor.Dispose();
    }
}
