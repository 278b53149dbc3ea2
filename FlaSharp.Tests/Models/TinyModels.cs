using FlaSharp.Models;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Models;

/// <summary>Every architecture, small, with seeded weights that are large enough for the tokens to matter.</summary>
internal static class TinyModels
{
    public const int Vocabulary = 61;

    private static readonly HybridAttention[] s_middle = [new() { Layers = [1], NumHeads = 4, NumKvHeads = 2, WindowSize = 5 }];

    private static readonly Dictionary<string, ModelConfig> s_configs = new()
    {
        ["gla"] = new GlaConfig { NumHeads = 2, IntermediateSize = 48 },
        ["gla with convolution"] = new GlaConfig { NumHeads = 4, NumKvHeads = 2, UseShortConv = true, IntermediateSize = 48 },
        ["gla hybrid"] = new GlaConfig { NumHeads = 2, IntermediateSize = 48, Attn = s_middle },
        ["mamba"] = new MambaConfig { StateSize = 8 },
        ["mamba hybrid"] = new MambaConfig { StateSize = 8, TieWordEmbeddings = false, Attn = s_middle },
        ["mamba2"] = new Mamba2Config { HeadDim = 16, StateSize = 8, NGroups = 2 },
        ["mamba2 hybrid"] = new Mamba2Config
        {
            HeadDim = 16,
            StateSize = 8,
            NGroups = 1,
            TieWordEmbeddings = true,
            Attn = s_middle,
        },
        ["llama"] = new TransformerConfig { NumHeads = 4, NumKvHeads = 2, IntermediateSize = 48, TieWordEmbeddings = true },
        ["transformer"] = new TransformerConfig
        {
            Naming = TransformerNaming.Fla,
            NumHeads = 4,
            IntermediateSize = 48,
            QkvBias = true,
            QkNorm = true,
            WindowSize = 6,
        },
    };

    public static TheoryData<string> Names => [.. s_configs.Keys];

    public static ModelConfig Config(string name) => s_configs[name] with
    {
        VocabSize = Vocabulary,
        HiddenSize = 32,
        NumHiddenLayers = 3,
        InitializerRange = 0.2,
        BosTokenId = 1,
        EosTokenIds = [],
        PadTokenId = 0,
    };

    public static CausalLM Create(string name, ScalarType? dtype = null)
    {
        manual_seed(17);
        return new CausalLM(Config(name), dtype: dtype);
    }

    public static Tensor Ids(int batch, int time, long seed = 3)
    {
        using var generator = new Generator((ulong)seed);
        return randint(0, Vocabulary, [batch, time], dtype: ScalarType.Int64, generator: generator);
    }
}
