using System.Text.Json.Nodes;
using FlaSharp.Models;
using FlaSharp.Tests.TestSupport;
using Xunit;

namespace FlaSharp.Tests.Models;

public sealed class ModelConfigTests
{
    private const string Sizes = "\"vocab_size\": 50, \"hidden_size\": 64, \"num_hidden_layers\": 3";

    public static TheoryData<string> Names => TinyModels.Names;

    [Theory, MemberData(nameof(Names))]
    public void Json_and_back_is_the_same(string name)
    {
        var config = TinyModels.Config(name);
        var again = Read(config.ToJson());
        Assert.Equal(config.ToJson(), again.ToJson());
        Assert.IsType(config.GetType(), again);
        Assert.Equal(config.ModelType, again.ModelType);
    }

    [Fact]
    public void Fields_have_Hugging_Face_names_and_defaults()
    {
        var gla = Assert.IsType<GlaConfig>(Read($"{{ \"model_type\": \"gla\", {Sizes} }}"));
        Assert.Equal((4, 0.5, 1.0, 1e-6, 0.02), (gla.NumHeads, gla.ExpandK, gla.ExpandV, gla.NormEps, gla.InitializerRange));
        Assert.Equal((16, 16.0, false), (gla.GateLowRankDim, gla.GateLogitNormalizer, gla.TieWordEmbeddings));
        var mamba = Assert.IsType<MambaConfig>(Read($"{{ \"model_type\": \"mamba\", {Sizes}, \"time_step_rank\": \"auto\" }}"));
        Assert.Equal((16, 128, 4), (mamba.StateSize, mamba.IntermediateSize, mamba.TimeStepRank));
        Assert.Equal((true, 1e-5), (mamba.TieWordEmbeddings, mamba.NormEps));
        var mamba2 = Assert.IsType<Mamba2Config>(Read($"{{ \"model_type\": \"mamba2\", {Sizes}, \"head_dim\": 8 }}"));
        Assert.Equal((16, 8, 128), (mamba2.NumHeads, mamba2.NGroups, mamba2.StateSize));
        Assert.Equal((0, double.PositiveInfinity), mamba2.TimeStepLimit);
        var llama = Assert.IsType<TransformerConfig>(Read($"{{ \"model_type\": \"llama\", {Sizes} }}"));
        Assert.Equal((32, 32, 2), (llama.NumHeads, llama.NumKvHeads, llama.HeadDim));
        Assert.Equal((1e-6, 10000.0), (llama.NormEps, llama.RopeTheta));

        var json = JsonNode.Parse(new TransformerConfig { HiddenSize = 4096, VocabSize = 50 }.ToJson())!.AsObject();
        Assert.Equal(11008, (int)json["intermediate_size"]!);
        Assert.Equal("LlamaForCausalLM", (string)json["architectures"]![0]!);
        string[] fields = ["num_attention_heads", "num_key_value_heads", "rms_norm_eps", "attention_bias", "rope_theta"];
        foreach (var field in fields)
            Assert.True(json.ContainsKey(field), field);
        Assert.Equal("chunk", (string)JsonNode.Parse(new GlaConfig().ToJson())!["attn_mode"]!);
    }

    [Theory]
    [InlineData("[0.5, {\"__float__\": \"Infinity\"}]", double.PositiveInfinity)]
    [InlineData("[0.5, Infinity]", double.PositiveInfinity)]
    [InlineData("[0.5, 7]", 7)]
    public void Infinity_is_read_in_every_form(string range, double max)
    {
        foreach (var field in new[] { "time_step_limit", "dt_limit" })
        {
            var config = (Mamba2Config)Read($$"""
                {
                  "model_type": "mamba2", {{Sizes}}, "head_dim": 8,
                  "note": "to \"Infinity\" and Infinity", "{{field}}": {{range}}
                }
                """);
            Assert.Equal((0.5, max), config.TimeStepLimit);
            Assert.Equal("to \"Infinity\" and Infinity", config.OtherFields!["note"].GetString());
        }
    }

    [Fact]
    public void Unknown_fields_are_kept()
    {
        var json = JsonNode.Parse(Read($$"""
            { "model_type": "gla", {{Sizes}}, "note": {"a": [1, null]}, "attn": {"layers": [1], "num_heads": 2, "more": 5} }
            """).ToJson())!;
        Assert.Equal("""{"a":[1,null]}""", json["note"]!.ToJsonString());
        Assert.Equal(5, (int)json["attn"]!["more"]!);
    }

    [Fact]
    public void Hybrids_are_an_object_or_a_list()
    {
        var one = (GlaConfig)Read($$"""{ "model_type": "gla", {{Sizes}}, "attn": {"layers": [1], "num_heads": 2} }""");
        Assert.Equal((2, null, 10000.0), (one.Attn![0].NumHeads, one.Attn[0].NumKvHeads, one.Attn[0].RopeTheta));
        var two = (MambaConfig)Read($$"""
            {
              "model_type": "mamba", {{Sizes}},
              "attn": [{"layers": [0, 2], "num_heads": 2, "window_size": 7}, {"layers": [1], "num_heads": 4, "num_kv_heads": 1}]
            }
            """);
        Assert.Equal([0, 2], two.Attn![0].Layers);
        Assert.Equal((7, 1), (two.Attn[0].WindowSize, two.Attn[1].NumKvHeads));
    }

    [Fact]
    public void Rotary_embedding_is_read_from_old_and_new_files()
    {
        Assert.Equal(5e5, Rope("\"rope_theta\": 500000.0, \"rope_scaling\": null"));
        Assert.Equal(5e5, Rope("\"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\": \"default\"}"));
        Fails("rope_scaling", $$"""{ "model_type": "llama", {{Sizes}}, "rope_scaling": {"rope_type": "llama3", "factor": 8} }""");

        static double? Rope(string fields) =>
            ((TransformerConfig)Read($"{{ \"model_type\": \"llama\", {Sizes}, {fields} }}")).RopeTheta;
    }

    [Theory]
    [InlineData("vocab_size", "\"model_type\": \"gla\", \"hidden_size\": 32, \"num_hidden_layers\": 3")]
    [InlineData("num_hidden_layers", "\"model_type\": \"mamba\", \"vocab_size\": 50, \"hidden_size\": 32")]
    [InlineData("model_type", Sizes)]
    [InlineData("gla, mamba, mamba2, llama, transformer", "\"model_type\": \"rwkv\"," + Sizes)]
    [InlineData("gla, mamba, mamba2, llama, transformer", "\"model_type\": 3," + Sizes)]
    [InlineData("initializer_range has the value \"big\"", "\"model_type\": \"gla\", \"initializer_range\": \"big\"," + Sizes)]
    [InlineData("num_attention_heads has the value 2.5", "\"model_type\": \"llama\", \"num_attention_heads\": 2.5," + Sizes)]
    [InlineData("layer_norm_epsilon has the value null", "\"model_type\": \"mamba\", \"layer_norm_epsilon\": null," + Sizes)]
    [InlineData("attn_mode has the value \"magic\"", "\"model_type\": \"gla\", \"attn_mode\": \"magic\"," + Sizes)]
    [InlineData("num_heads", "\"model_type\": \"gla\", \"attn\": {\"layers\": [1], \"num_heads\": \"x\"}," + Sizes)]
    [InlineData("attn has the value", "\"model_type\": \"gla\", \"attn\": {\"layers\": [1]}," + Sizes)]
    [InlineData("time_step_limit has the value", "\"model_type\": \"mamba2\", \"time_step_limit\": [1]," + Sizes)]
    [InlineData("NumHeads = -4", "\"model_type\": \"gla\", \"num_heads\": -4," + Sizes)]
    [InlineData("HiddenSize * ExpandK", "\"model_type\": \"gla\", \"num_heads\": 3," + Sizes)]
    [InlineData("NumKvHeads = 3", "\"model_type\": \"gla\", \"num_kv_heads\": 3," + Sizes)]
    [InlineData("NumHeads = 5", "\"model_type\": \"mamba2\", \"num_heads\": 5," + Sizes)]
    [InlineData("NGroups = 3", "\"model_type\": \"mamba2\", \"head_dim\": 8, \"n_groups\": 3," + Sizes)]
    [InlineData("HiddenAct = gelu", "\"model_type\": \"gla\", \"hidden_act\": \"gelu\"," + Sizes)]
    [InlineData("EosTokenIds = 50", "\"model_type\": \"gla\", \"eos_token_id\": [2, 50]," + Sizes)]
    [InlineData("Attn[0].Layers = 3", "\"model_type\": \"gla\", \"attn\": {\"layers\": [3], \"num_heads\": 2}," + Sizes)]
    [InlineData("Attn[1].Layers = 1",
        "\"model_type\": \"gla\", \"attn\": [{\"layers\": [1], \"num_heads\": 2}, {\"layers\": [1], \"num_heads\": 4}]," + Sizes)]
    [InlineData("Attn[0].NumHeads = 5", "\"model_type\": \"gla\", \"attn\": {\"layers\": [1], \"num_heads\": 5}," + Sizes)]
    public void What_is_wrong_in_a_file_is_named(string part, string fields) => Fails(part, $"{{ {fields} }}");

    [Theory, InlineData("{"), InlineData("[]"), InlineData("{\"a\": 1, \"a\": 2}"), InlineData("")]
    public void What_is_no_object_is_refused(string text) => Fails("config.json", text);

    [Fact]
    public void Nonsense_in_code_is_refused_before_any_work()
    {
        Assert.Throws<ArgumentException>(() => new CausalLM(new GlaConfig { HiddenSize = -1 }));
        Assert.Throws<ArgumentException>(() => new CausalLM(new TransformerConfig { HiddenSize = 30, NumHeads = 4 }));
        Assert.Throws<ArgumentException>(() => new CausalLM(new TransformerConfig { WindowSize = 4 }));
        Assert.Throws<ArgumentException>(() => new CausalLM(new MambaConfig { TimeStepMin = 1 }));
        Assert.Throws<ArgumentException>(() => new CausalLM(new MambaConfig { NormEps = double.NaN }));
        Assert.Throws<ArgumentNullException>(() => new CausalLM(null!));
    }

    private static void Fails(string part, string json)
    {
        var message = Assert.Throws<InvalidDataException>(() => Read(json)).Message;
        Assert.Contains("config.json", message);
        Assert.Contains(part, message);
    }

    private static ModelConfig Read(string json)
    {
        using var folder = new TemporaryFolder();
        File.WriteAllText(folder.File("config.json"), json);
        return ModelConfig.Load(folder.File("config.json"));
    }
}
