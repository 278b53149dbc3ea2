using FlaSharp.Layers;
using FlaSharp.Modules;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>One block of every model: x + mixer(norm(x)), then, where there is an MLP, x + mlp(norm(x)).</summary>
internal sealed class Block : nn.Module
{
    private readonly RMSNorm _mixerNorm;
    private readonly SequenceLayer _mixer;
    private readonly RMSNorm? _mlpNorm;
    private readonly GatedMlp? _mlp;

    public Block(ModelConfig config, int layer, Device? device, ScalarType? dtype) : base(nameof(Block))
    {
        var names = config.Names;
        _mixerNorm = new RMSNorm(config.HiddenSize, config.NormEps, device: device, dtype: dtype);
        _mixer = config.CreateMixer(layer, device, dtype);
        register_module(names.MixerNorm, _mixerNorm);
        register_module(names.Mixer, _mixer);
        if (names.Mlp is null)
            return;
        _mlpNorm = new RMSNorm(config.HiddenSize, config.NormEps, device: device, dtype: dtype);
        _mlp = config.CreateMlp(device, dtype)!;
        register_module(names.MlpNorm!, _mlpNorm);
        register_module(names.Mlp, _mlp);
    }

    /// <param name="x">The residual stream; used up.</param>
    /// <param name="cuSeqlens">The bounds of packed sequences, if B is 1.</param>
    /// <param name="state">The mixer's state, if there is one to go on from or to keep.</param>
    public Residual forward(Residual x, Tensor? cuSeqlens, LayerState? state)
    {
        using var scope = NewDisposeScope();
        var (normed, stream) = x.Norm(_mixerNorm);
        var added = _mixer.forward(normed, null, cuSeqlens, state);
        if (_mlp is not null)
        {
            (normed, stream) = new Residual(stream, added).Norm(_mlpNorm!);
            added = _mlp.forward(normed);
        }
        if (!ReferenceEquals(stream, x.Stream)) // that one lies outside already
            stream.MoveToOuterDisposeScope();
        return new Residual(stream, added.MoveToOuterDisposeScope());
    }

    /// <summary>The fields are registered above, under the names of the architecture.</summary>
    protected override void RegisterComponents() { }
}
