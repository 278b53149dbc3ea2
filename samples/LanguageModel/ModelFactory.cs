using System.Numerics;
using FlaSharp.Models;
using TorchSharp;
using static TorchSharp.torch;

namespace LanguageModel;

/// <summary>Models of one size, whatever the layer.</summary>
internal static class ModelFactory
{
    private const int SoftmaxEvery = 4;

    /// <exception cref="UserError">The sizes do not fit each other.</exception>
    public static CausalLM Create(TrainOptions options, int vocabSize, Device device)
    {
        manual_seed(options.Seed);
        try
        {
            return new CausalLM(Configure(options, vocabSize), device, Type(options.Dtype));
        }
        catch (ArgumentException e)
        {
            throw new UserError($"These sizes do not make a model: {e.Message}");
        }
    }

    public static ScalarType Type(Precision precision) => precision switch
    {
        Precision.Bf16 => bfloat16,
        Precision.Fp16 => float16,
        _ => float32,
    };

    private static ModelConfig Configure(TrainOptions options, int vocabSize)
    {
        int width = options.Width;
        // Eight thirds of the width in multiples of 64: with it a block of attention and an MLP is as large as two Mamba blocks.
        int mlp = (width * 8 / 3 + 63) / 64 * 64;
        ModelConfig config = options.Layer switch
        {
            LayerKind.Softmax => new TransformerConfig { NumHeads = options.Heads, IntermediateSize = mlp },
            LayerKind.Mamba => new MambaConfig(),
            LayerKind.Mamba2 => new Mamba2Config
            {
                NGroups = 1,
                HeadDim = HeadDim(2 * width),
                StateSize = Math.Clamp(width / 4, 16, 128), // wider, two blocks would outgrow one of attention and MLP
            },
            _ => new GlaConfig
            {
                NumHeads = options.Heads,
                AttnMode = options.Mode,
                IntermediateSize = mlp,
                Attn = options.Layer == LayerKind.Hybrid ? [SoftmaxLayers(options)] : null,
            },
        };
        return config with
        {
            VocabSize = vocabSize,
            HiddenSize = width,
            NumHiddenLayers = options.Layer is LayerKind.Mamba or LayerKind.Mamba2 ? 2 * options.Layers : options.Layers,
            TieWordEmbeddings = vocabSize > 1000,
            InitializerRange = 0.02,
            RescalePrenormResidual = true,
            BosTokenId = null,
            EosTokenIds = null,
            PadTokenId = null,
        };
    }

    private static HybridAttention SoftmaxLayers(TrainOptions options) => new()
    {
        NumHeads = options.Heads,
        Layers = [.. Enumerable.Range(0, options.Layers).Where(layer => (layer + 1) % SoftmaxEvery == 0)],
    };

    /// <summary>The greatest power of two up to 64 that divides the inner width.</summary>
    private static int HeadDim(int inner) => Math.Min(64, 1 << BitOperations.TrailingZeroCount(inner));
}
