using FlaSharp;
using FlaSharp.Layers;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>A layer with the input sets on which it is timed.</summary>
internal sealed class LayerTimings : IDisposable
{
    private readonly Stopclock _clock;
    private readonly SequenceLayer _layer;
    private readonly Parameter[] _parameters;
    private readonly Tensor[] _inputs;
    private readonly Tensor _outputGradient;

    /// <param name="clock">Times it.</param>
    /// <param name="layer">From now on this object's.</param>
    /// <param name="batch">B of the inputs [B, T, D].</param>
    /// <param name="time">T of them.</param>
    /// <param name="dtype">Of inputs and weights.</param>
    public LayerTimings(Stopclock clock, SequenceLayer layer, long batch, long time, ScalarType dtype)
    {
        (_clock, _layer, _parameters) = (clock, layer, [.. layer.parameters()]);
        Target target = clock.Target;
        long bytes = batch * time * layer.HiddenSize * dtype.ElementSize();
        manual_seed(0);
        _inputs = [.. Enumerable.Range(0, InputSets.Count(bytes, target.CacheBytes)).Select(_ => Normal().requires_grad_())];
        _outputGradient = Normal();

        Tensor Normal() => randn([batch, time, layer.HiddenSize], dtype, target.Device).DetachFromDisposeScope();
    }

    public long ParameterCount => _parameters.Sum(parameter => parameter.numel());

    /// <summary>Without a graph.</summary>
    public Timing Forward() => _clock.Time(_inputs.Length, set =>
    {
        using IDisposable _ = no_grad();
        _layer.forward(_inputs[set]);
    });

    /// <summary>Into the gradients of the input and of all parameters.</summary>
    public Timing ForwardBackward() => _clock.Time(_inputs.Length, Step, ClearGradients);

    public void Dispose()
    {
        _layer.Dispose();
        foreach (Tensor tensor in _inputs.Append(_outputGradient))
            tensor.Dispose();
    }

    private void Step(int set) => _layer.forward(_inputs[set]).Backward(_outputGradient);

    private void ClearGradients(int set)
    {
        _inputs[set].grad = null;
        foreach (Parameter parameter in _parameters)
            parameter.grad = null;
    }
}
