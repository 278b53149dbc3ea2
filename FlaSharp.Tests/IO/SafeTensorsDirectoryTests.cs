using System.Text.Json;
using FlaSharp.IO;
using FlaSharp.Tests.TestSupport;
using TorchSharp;
using Xunit;
using static TorchSharp.torch;

namespace FlaSharp.Tests.IO;

public sealed class SafeTensorsDirectoryTests : IDisposable
{
    private readonly TemporaryFolder _folder = new();
    private readonly DisposeScope _scope = NewDisposeScope();

    public void Dispose()
    {
        _scope.Dispose();
        _folder.Dispose();
    }

    [Fact]
    public void One_file_is_preferred()
    {
        Save("model.safetensors", ("a", 1));
        File.WriteAllText(_folder.File("model.safetensors.index.json"), "broken");
        Assert.Equal(1, SafeTensors.LoadDirectory(_folder.Path)["a"].item<float>());
    }

    [Fact]
    public void Shards_are_joined_and_give_only_what_the_index_names()
    {
        Save("model-00001-of-00002.safetensors", ("a", 1), ("b", 2), ("unlisted", 9));
        Save("model-00002-of-00002.safetensors", ("c", 3), ("a", 9));
        Index(("a", "model-00001-of-00002.safetensors"), ("c", "model-00002-of-00002.safetensors"), ("b", "model-00001-of-00002.safetensors"));
        var tensors = SafeTensors.LoadDirectory(_folder.Path);
        Assert.Equal(["a", "b", "c"], tensors.Keys.Order());
        Assert.Equal([1f, 2f, 3f], tensors.OrderBy(pair => pair.Key).Select(pair => pair.Value.item<float>()));
        Assert.Contains("neither", Assert.Throws<FileNotFoundException>(() => SafeTensors.LoadDirectory(Path.GetTempPath())).Message);
    }

    [Theory]
    [InlineData("../x.safetensors")]
    [InlineData("sub/x.safetensors")]
    [InlineData("/etc/passwd")]
    [InlineData("..\\x.safetensors")]
    [InlineData("C:x.safetensors")]
    [InlineData("..")]
    [InlineData("")]
    [InlineData("x\0y")]
    public void A_shard_outside_the_folder_is_refused(string shard)
    {
        Index(("a", shard));
        Assert.Contains("no plain file name", Assert.Throws<SafeTensorsException>(() => SafeTensors.LoadDirectory(_folder.Path)).Message);
    }

    [Fact]
    public void What_the_index_promises_must_be_there()
    {
        Save("x.safetensors", ("a", 1));
        Index(("a", "x.safetensors"), ("b", "x.safetensors"));
        var live = _scope.DisposablesCount;
        Assert.Contains("'b' in x.safetensors", Assert.Throws<SafeTensorsException>(() => SafeTensors.LoadDirectory(_folder.Path)).Message);
        Index(("a", "x.safetensors"), ("b", "y.safetensors"));
        Assert.Throws<FileNotFoundException>(() => SafeTensors.LoadDirectory(_folder.Path));
        Assert.Equal(live, _scope.DisposablesCount);
    }

    [Theory]
    [InlineData("")]
    [InlineData("[]")]
    [InlineData("{}")]
    [InlineData("""{"weight_map":[]}""")]
    [InlineData("""{"weight_map":{"a":1}}""")]
    [InlineData("""{"weight_map":{"a":"x","a":"x"}}""")]
    [InlineData("""{"weight_map":{"a":"\ud800"}}""")]
    [InlineData("""{"weight_map":{"a":"x"}}}""")]
    public void A_broken_index_is_refused(string index)
    {
        File.WriteAllText(_folder.File("model.safetensors.index.json"), index);
        Assert.Throws<SafeTensorsException>(() => SafeTensors.LoadDirectory(_folder.Path));
    }

    [Fact]
    public void A_deeply_nested_index_is_refused()
    {
        File.WriteAllText(_folder.File("model.safetensors.index.json"), new string('[', 1_000_000));
        Assert.Throws<SafeTensorsException>(() => SafeTensors.LoadDirectory(_folder.Path));
    }

    private void Save(string file, params (string name, float value)[] tensors) =>
        SafeTensors.Save(_folder.File(file), tensors.ToDictionary(pair => pair.name, pair => tensor(pair.value)));

    private void Index(params (string tensor, string file)[] map) => File.WriteAllText(
        _folder.File("model.safetensors.index.json"),
        JsonSerializer.Serialize(new { weight_map = map.ToDictionary(pair => pair.tensor, pair => pair.file) }));
}
