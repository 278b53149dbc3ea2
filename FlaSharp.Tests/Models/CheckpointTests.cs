using System.Text.Json;
using FlaSharp.IO;
using FlaSharp.Models;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.Models;

public sealed class CheckpointTests
{
    public static TheoryData<string> Names => TinyModels.Names;

    [Theory, MemberData(nameof(Names))]
    public void A_saved_model_is_the_same_after_loading(string name)
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using var model = TinyModels.Create(name);
        var path = Path.Combine(folder.Path, "made", "here");
        model.SavePretrained(path);
        using var loaded = CausalLM.FromPretrained(path);
        var ids = TinyModels.Ids(1, 9);
        Assert.True(model.forward(ids).equal(loaded.forward(ids)).all().item<bool>());
        Assert.Equal(model.Config.ToJson(), (loaded.Config with { OtherFields = null }).ToJson());
        Assert.Equal("pt", SafeTensors.LoadMetadata(Path.Combine(path, "model.safetensors"))["format"]);
    }

    [Fact]
    public void Keys_are_the_peers()
    {
        using var scope = NewDisposeScope();
        AssertKeys("gla hybrid", "lm_head model.embeddings model.norm",
            "attn_norm attn.q_proj attn.k_proj attn.v_proj attn.g_proj attn.gk_proj.0 attn.gk_proj.1 attn.gk_proj.1.bias " +
            "attn.o_proj attn.g_norm_swish_gate mlp_norm mlp.gate_proj mlp.up_proj mlp.down_proj",
            "attn_norm attn.q_proj attn.k_proj attn.v_proj attn.o_proj mlp_norm mlp.gate_proj mlp.up_proj mlp.down_proj");
        AssertKeys("mamba hybrid", "lm_head backbone.embeddings backbone.norm_f",
            "norm mixer.in_proj mixer.conv1d mixer.conv1d.bias mixer.x_proj mixer.dt_proj mixer.dt_proj.bias mixer.A_log. " +
            "mixer.D. mixer.out_proj",
            "norm mixer.q_proj mixer.k_proj mixer.v_proj mixer.o_proj");
        AssertKeys("mamba2 hybrid", "backbone.embeddings backbone.norm_f",
            "norm mixer.in_proj mixer.conv1d mixer.conv1d.bias mixer.dt_bias. mixer.A_log. mixer.D. mixer.norm mixer.out_proj",
            "norm mixer.q_proj mixer.k_proj mixer.v_proj mixer.o_proj");
        const string Block =
            "attn_norm attn.q_proj attn.k_proj attn.v_proj attn.o_proj attn.q_proj.bias attn.k_proj.bias attn.v_proj.bias " +
            "attn.q_norm attn.k_norm mlp_norm mlp.gate_proj mlp.up_proj mlp.down_proj";
        AssertKeys("transformer", "lm_head model.embeddings model.norm", Block, Block);
    }

    [Fact]
    public void Shards_are_read_through_their_index()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using var model = TinyModels.Create("gla");
        var weights = model.state_dict().OrderBy(pair => pair.Key).ToList();
        var map = new Dictionary<string, string>();
        foreach (var (shard, part) in new[] { ("a.safetensors", weights.Take(9)), ("b.safetensors", weights.Skip(9)) })
        {
            SafeTensors.Save(folder.File(shard), part.ToDictionary());
            foreach (var (key, _) in part)
                map[key] = shard;
        }
        File.WriteAllText(folder.File("model.safetensors.index.json"), JsonSerializer.Serialize(new { weight_map = map }));
        File.WriteAllText(folder.File("config.json"), model.Config.ToJson());
        using var loaded = CausalLM.FromPretrained(folder.Path);
        AssertSame(model.state_dict(), loaded.state_dict());
    }

    [Fact]
    public void Older_forms_are_understood()
    {
        using var scope = NewDisposeScope();
        using var gla = TinyModels.Create("gla");
        var weights = gla.state_dict();
        for (var i = 0; i < 3; i++)
        {
            var (gate, up) = ($"model.layers.{i}.mlp.gate_proj.weight", $"model.layers.{i}.mlp.up_proj.weight");
            weights[gate] = cat([weights[gate], weights[up]], 0);
            weights.Remove(up);
        }
        weights["model.layers.0.attn.rotary.inv_freq"] = ones(4);
        using var other = new CausalLM(gla.Config);
        other.LoadWeights(weights);
        AssertSame(gla.state_dict(), other.state_dict());

        using var mamba = TinyModels.Create("mamba");
        var old = mamba.state_dict();
        old.Remove("backbone.embeddings.weight", out var embeddings);
        old["backbone.embedding.weight"] = embeddings!;
        old["lm_head.weight"] = embeddings!.clone();
        using var another = new CausalLM(mamba.Config);
        another.LoadWeights(old);
        AssertSame(mamba.state_dict(), another.state_dict());

        old["lm_head.weight"] = embeddings + 1;
        var exception = Assert.Throws<CheckpointMismatchException>(() => another.LoadWeights(old));
        Assert.Equal(["lm_head.weight"], exception.UnexpectedKeys);
    }

    [Fact]
    public void All_that_does_not_fit_is_listed_and_nothing_changes()
    {
        using var scope = NewDisposeScope();
        using var model = TinyModels.Create("gla");
        var before = model.state_dict().ToDictionary(pair => pair.Key, pair => pair.Value.detach().clone());
        var weights = before.ToDictionary(pair => pair.Key, pair => pair.Value + 1);
        weights.Remove("model.norm.weight");
        weights.Remove("model.layers.1.attn.q_proj.weight");
        weights["model.layers.7.attn.q_proj.weight"] = ones(2, 3);
        weights["lm_head.weight"] = ones(4, 5);
        weights["model.embeddings.weight"] = before["model.embeddings.weight"].to(ScalarType.Int64);
        var exception = Assert.Throws<CheckpointMismatchException>(() => model.LoadWeights(weights));
        Assert.Equal(["model.layers.1.attn.q_proj.weight", "model.norm.weight"], exception.MissingKeys);
        Assert.Equal(["model.layers.7.attn.q_proj.weight"], exception.UnexpectedKeys);
        Assert.Equal(["lm_head.weight", "model.embeddings.weight"], exception.UnfitKeys);
        Assert.Contains("model.layers.1.attn.q_proj.weight [16, 32]", exception.Message);
        Assert.Contains("lm_head.weight: Float32 [4, 5] in the checkpoint, [61, 32] in the model", exception.Message);
        AssertSame(before, model.state_dict());
    }

    [Fact]
    public void Another_architecture_is_called_by_its_name()
    {
        using var scope = NewDisposeScope();
        string[] names = ["mamba2", "mamba", "gla", "llama", "transformer"];
        for (var i = 0; i < names.Length; i++)
        {
            var (of, into) = (names[i], names[(i + 1) % names.Length]);
            using var source = TinyModels.Create(of);
            using var target = TinyModels.Create(into);
            var exception = Assert.Throws<CheckpointMismatchException>(() => target.LoadWeights(source.state_dict()));
            Assert.Contains($"look like those of a {of} model", exception.Message);
        }
    }

    [Fact]
    public void The_dtype_is_that_of_the_file_or_the_one_asked_for()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using (var half = TinyModels.Create("mamba2", ScalarType.BFloat16))
            half.SavePretrained(folder.Path);
        const string Weight = "backbone.layers.0.mixer.in_proj.weight", Decay = "backbone.layers.0.mixer.A_log";
        foreach (var (asked, expected) in new (ScalarType?, ScalarType)[]
        {
            (null, ScalarType.BFloat16), (ScalarType.Float32, ScalarType.Float32), (ScalarType.Float16, ScalarType.Float16),
        })
        {
            using var model = CausalLM.FromPretrained(folder.Path, dtype: asked);
            Assert.Equal(expected, model.state_dict()[Weight].dtype);
            Assert.Equal(ScalarType.Float32, model.state_dict()[Decay].dtype);
            Compare.Close(model.state_dict()[Weight], SafeTensors.LoadDirectory(folder.Path)[Weight], 1e-4, $"{expected}");
        }
        Assert.Throws<ArgumentException>(() => CausalLM.FromPretrained(folder.Path, dtype: ScalarType.Int64));
    }

    [Fact]
    public void A_model_with_every_weight_in_half_precision_can_be_loaded()
    {
        using var scope = NewDisposeScope();
        using var folder = new TemporaryFolder();
        using var model = TinyModels.Create("gla");
        var halves = model.state_dict().ToDictionary(pair => pair.Key, pair => pair.Value.to(ScalarType.Float16));
        SafeTensors.Save(folder.File("model.safetensors"), halves);
        File.WriteAllText(folder.File("config.json"), model.Config.ToJson());
        using var loaded = CausalLM.FromPretrained(folder.Path, dtype: ScalarType.Float32);
        foreach (var (key, tensor) in loaded.state_dict())
            Compare.Close(tensor, model.state_dict()[key], 1e-3, key);
    }

    [Fact]
    public void What_is_missing_on_disk_is_named()
    {
        using var folder = new TemporaryFolder();
        Assert.Contains("config.json", Load().Message);
        File.WriteAllText(folder.File("config.json"), TinyModels.Config("mamba").ToJson());
        Assert.Contains("model.safetensors", Load().Message);

        FileNotFoundException Load() => Assert.Throws<FileNotFoundException>(() => CausalLM.FromPretrained(folder.Path));
    }

    [Fact]
    public void A_failed_save_leaves_the_old_files()
    {
        using var folder = new TemporaryFolder();
        using var first = TinyModels.Create("mamba");
        first.SavePretrained(folder.Path);
        var config = File.ReadAllText(folder.File("config.json"));
        var weights = File.ReadAllBytes(folder.File("model.safetensors"));

        using var second = TinyModels.Create("gla");
        Assert.Throws<IOException>(() => second.SavePretrained(folder.File("config.json"))); // a file where a folder should be
        File.Delete(folder.File("model.safetensors"));
        Directory.CreateDirectory(folder.File("model.safetensors")); // now the weights cannot be written
        Assert.Contains(folder.Path, Assert.Throws<IOException>(() => second.SavePretrained(folder.Path)).Message);
        Assert.Equal(config, File.ReadAllText(folder.File("config.json")));
        Directory.Delete(folder.File("model.safetensors"));
        Assert.Equal(["config.json"], Directory.GetFiles(folder.Path).Select(Path.GetFileName));

        first.SavePretrained(folder.Path);
        Assert.Equal(weights, File.ReadAllBytes(folder.File("model.safetensors")));
    }

    /// <summary>Names of the whole, of blocks 0 and 2, and of block 1, without ".weight"; ".bias" stays, "x." is x.</summary>
    private static void AssertKeys(string name, string outer, string block, string middle)
    {
        using var model = TinyModels.Create(name);
        var root = model.Config.Names.Root;
        var expected = outer.Split(' ')
            .Concat(Enumerable.Range(0, 3)
                .SelectMany(i => (i == 1 ? middle : block).Split(' ').Select(key => $"{root}.layers.{i}.{key}")))
            .Select(key => key.EndsWith('.') ? key[..^1] : key.EndsWith(".bias") ? key : $"{key}.weight");
        Assert.Equal(expected.Order(), model.state_dict().Keys.Order());
    }

    private static void AssertSame(Dictionary<string, Tensor> expected, Dictionary<string, Tensor> actual)
    {
        Assert.Equal(expected.Keys.Order(), actual.Keys.Order());
        foreach (var (key, tensor) in expected)
            Assert.True(tensor.equal(actual[key]).all().item<bool>(), key);
    }
}
