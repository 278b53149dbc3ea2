using FlaSharp.Interop;
using FlaSharp.Layers;
using FlaSharp.Ops;
using TorchSharp;
using TorchSharp.Modules;
using static TorchSharp.torch;
using Padding = FlaSharp.Layers.Padding;

namespace FlaSharp.Models;

/// <summary>
/// A language model that predicts the next token: embeddings, blocks of mixer and MLP, a norm and a head. The configuration says
/// which mixer; the names in the state dict are those of flash-linear-attention and Hugging Face.
/// </summary>
/// <remarks>
/// Call <c>eval()</c> before inference if the configuration has dropout. Where TorchSharp's <c>.to(dtype)</c> makes a
/// half-precision model, decays and step sizes stay float32.
/// </remarks>
public sealed partial class CausalLM : nn.Module<Tensor, Tensor>
{
    private const long IgnoredLabel = -100;

    private readonly Backbone _backbone;
    private readonly Linear? _head;

    /// <summary>Makes a model with random weights, drawn from TorchSharp's generator (<c>torch.manual_seed</c>), on a GPU too.</summary>
    /// <param name="config">The architecture.</param>
    /// <param name="device">Where to make the parameters; the CPU if null.</param>
    /// <param name="dtype">Of the parameters: float32 (if null), float16 or bfloat16.</param>
    /// <exception cref="ArgumentException">A value of the configuration makes no sense, or the dtype is another.</exception>
    public CausalLM(ModelConfig config, Device? device = null, ScalarType? dtype = null)
        : this(config, device, dtype, initialize: true) { }

    private CausalLM(ModelConfig config, Device? device, ScalarType? dtype, bool initialize) : base(nameof(CausalLM))
    {
        ArgumentNullException.ThrowIfNull(config);
        if (dtype is not (null or ScalarType.Float32 or ScalarType.Float16 or ScalarType.BFloat16))
            throw new ArgumentException($"dtype must be float32, float16 or bfloat16, but is {dtype}.", nameof(dtype));
        config.Validate();

        Config = config;
        GpuSeed.Follow(device);
        _backbone = new Backbone(config, device, dtype);
        register_module(config.Names.Root, _backbone);
        if (!config.TieWordEmbeddings)
        {
            _head = nn.Linear(config.HiddenSize, config.VocabSize, hasBias: false, device: device, dtype: dtype);
            register_module("lm_head", _head);
        }
        if (initialize)
            Initialization.Apply(this);
    }

    /// <summary>The architecture.</summary>
    public ModelConfig Config { get; }

    /// <summary>The number of weights; tied embeddings count once.</summary>
    public long ParameterCount => parameters().Sum(parameter => parameter.numel());

    // TorchSharp counts one tensor in two modules twice: tied embeddings are one parameter that is used twice.
    private Tensor HeadWeight => _head is null ? _backbone.EmbeddingWeight : _head.weight;

    /// <summary>An empty state, for passes that go on from each other.</summary>
    public ModelState NewState() => new(Enumerable.Range(0, Config.NumHiddenLayers).Select(_ => new LayerState()));

    /// <summary>The logits of the token after each token.</summary>
    /// <param name="input">Token ids, int64 [B, T].</param>
    /// <returns>[B, T, vocabulary] in the dtype of the weights.</returns>
    /// <exception cref="ArgumentException">Another shape or dtype, T = 0, or an id outside the vocabulary.</exception>
    public override Tensor forward(Tensor input) => forward(input, null);

    /// <summary>The logits of the token after each token, leaving out padding or keeping packed sequences apart.</summary>
    /// <param name="inputIds">Token ids, int64 [B, T].</param>
    /// <param name="attentionMask">
    /// [B, T], 1 at tokens and 0 at padding, which may lie left, right or in between. Padding costs nothing: it is taken out
    /// before the first block. The logits there are 0.
    /// </param>
    /// <param name="cuSeqlens">
    /// int32 or int64 [S + 1], the bounds of S sequences packed into one row (B = 1). They do not see each other. Not together
    /// with a mask.
    /// </param>
    /// <param name="state">What the rows (or packed sequences) held before; it is moved on. See <see cref="NewState"/>.</param>
    /// <returns>[B, T, vocabulary] in the dtype of the weights.</returns>
    /// <exception cref="ArgumentException">
    /// A shape, dtype or device does not fit, T = 0, an id is outside the vocabulary, mask and cuSeqlens are both given, or the
    /// state is that of another model or batch size.
    /// </exception>
    public Tensor forward(Tensor inputIds, Tensor? attentionMask, Tensor? cuSeqlens = null, ModelState? state = null)
    {
        CheckIds(inputIds);
        CheckState(state);

        using var scope = NewDisposeScope();
        var padding = ReadPadding(inputIds, attentionMask, cuSeqlens);
        if (padding is null)
            return Logits(_backbone.forward(inputIds, cuSeqlens, state)).MoveToOuterDisposeScope();
        if (padding.TokenCount == 0)
            return HeadWeight.new_zeros([.. inputIds.shape, Config.VocabSize]).MoveToOuterDisposeScope();
        var logits = Logits(_backbone.forward(padding.Pack(inputIds), padding.CuSeqlens, state));
        return padding.Unpack(logits).MoveToOuterDisposeScope();
    }

    /// <summary>The mean cross-entropy of the next tokens, computed in float32.</summary>
    /// <param name="inputIds">Token ids, int64 [B, T].</param>
    /// <param name="labels">
    /// int64 [B, T], usually the ids themselves: the shift by one is made here. Labels of -100 are left out, and so are those
    /// at padding and at the first token of a sequence, which nothing predicts.
    /// </param>
    /// <param name="attentionMask">[B, T], 1 at tokens and 0 at padding.</param>
    /// <param name="cuSeqlens">int32 or int64 [S + 1], the bounds of S sequences packed into one row (B = 1).</param>
    /// <returns>A float32 scalar.</returns>
    /// <exception cref="ArgumentException">
    /// As for forward; or a label is neither -100 nor in the vocabulary, or none is left.
    /// </exception>
    public Tensor Loss(Tensor inputIds, Tensor labels, Tensor? attentionMask = null, Tensor? cuSeqlens = null)
    {
        CheckIds(inputIds);
        CheckLabels(labels, inputIds);

        using var scope = NewDisposeScope();
        var padding = ReadPadding(inputIds, attentionMask, cuSeqlens);
        if (padding is { TokenCount: > 0 })
            (inputIds, labels, cuSeqlens) = (padding.Pack(inputIds), padding.Pack(labels), padding.CuSeqlens);
        var targets = Targets(labels, cuSeqlens);
        if (padding is { TokenCount: 0 } || !targets.ne(IgnoredLabel).any().item<bool>())
            throw new ArgumentException(
                "labels hold no token to predict: the first token of a row, padding and labels of -100 do not count.",
                nameof(labels));

        var logits = Logits(_backbone.forward(inputIds, cuSeqlens, null)).to(ScalarType.Float32);
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index: IgnoredLabel)
            .MoveToOuterDisposeScope();
    }

    /// <summary>The modules are registered by the constructor, under the names of the architecture.</summary>
    protected override void RegisterComponents() { }

    /// <summary>[..., D] to [..., vocabulary].</summary>
    private Tensor Logits(Tensor hidden) => nn.functional.linear(hidden, HeadWeight);

    /// <summary>labels [B, T], each moved to the token before it; -100 at the last token of each sequence.</summary>
    private static Tensor Targets(Tensor labels, Tensor? cuSeqlens)
    {
        using var scope = NewDisposeScope();
        var targets = labels.roll(-1, 1);
        if (cuSeqlens is null)
        {
            targets[.., ^1] = IgnoredLabel;
            return targets.MoveToOuterDisposeScope();
        }
        var sequences = Sequences.Of(labels.size(0), labels.size(1), cuSeqlens);
        var last = Enumerable.Range(0, sequences.Count).Where(s => sequences.Length(s) > 0).Select(s => sequences.End(s) - 1L);
        return targets.index_fill(1, tensor(last.ToArray(), device: labels.device), IgnoredLabel).MoveToOuterDisposeScope();
    }

    private static Padding? ReadPadding(Tensor inputIds, Tensor? attentionMask, Tensor? cuSeqlens)
    {
        if (attentionMask is not null && cuSeqlens is not null)
            throw new ArgumentException(
                "Give attentionMask or cuSeqlens, not both: packed sequences have no padding.", nameof(cuSeqlens));
        return attentionMask is null ? null : Padding.From(attentionMask, inputIds);
    }

    private void CheckIds(Tensor inputIds, string name = "inputIds")
    {
        using var scope = NewDisposeScope();
        CheckInt64(inputIds, name);
        Guard.Shape(inputIds, "[B, T]", [-1, -1], name);
        Guard.NotEmpty(inputIds, "[B, T]", name);
        Guard.Operands(HeadWeight, "the model", (inputIds, name));
        var range = stack([inputIds.min(), inputIds.max()]).cpu().data<long>().ToArray();
        if (range[0] < 0 || range[1] >= Config.VocabSize)
            throw new ArgumentException(
                $"{name} must be from 0 to {Config.VocabSize - 1} (the vocabulary has {Config.VocabSize} tokens), but go from " +
                $"{range[0]} to {range[1]}.", name);
    }

    private void CheckLabels(Tensor labels, Tensor inputIds)
    {
        CheckInt64(labels, nameof(labels));
        Guard.Shape(labels, "[B, T]", [inputIds.size(0), inputIds.size(1)]);
        Guard.Operands(inputIds, nameof(inputIds), (labels, nameof(labels)));
        using var scope = NewDisposeScope();
        if ((labels.ne(IgnoredLabel) & (labels.lt(0) | labels.ge(Config.VocabSize))).any().item<bool>())
            throw new ArgumentException(
                $"labels must be from 0 to {Config.VocabSize - 1}, or -100 where there is nothing to predict, but go from " +
                $"{labels.min().item<long>()} to {labels.max().item<long>()}.", nameof(labels));
    }

    private void CheckState(ModelState? state)
    {
        if (state is not null && state.Layers.Count != Config.NumHiddenLayers)
            throw new ArgumentException(
                $"state is that of a model with {state.Layers.Count} blocks; this one has {Config.NumHiddenLayers}. Make it " +
                "with NewState().", nameof(state));
    }

    private static void CheckInt64(Tensor tensor, string name)
    {
        ArgumentNullException.ThrowIfNull(tensor, name);
        if (tensor.dtype != ScalarType.Int64)
            throw new ArgumentException(
                $"{name} must be int64, but is {tensor.dtype}. Convert it with {name}.to(torch.int64).", name);
    }
}
