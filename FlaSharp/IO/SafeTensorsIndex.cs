using System.Text.Json;
using static TorchSharp.torch;

namespace FlaSharp.IO;

/// <summary>A checkpoint in several files, and the <c>model.safetensors.index.json</c> that says which tensor is in which.</summary>
internal static class SafeTensorsIndex
{
    private const string FileName = "model.safetensors.index.json";
    private const long LengthLimit = 100_000_000;

    public static Dictionary<string, Tensor> Load(string directory, Device? device)
    {
        var path = Path.Combine(directory, FileName);
        if (!File.Exists(path))
            throw new FileNotFoundException($"'{directory}' has neither model.safetensors nor {FileName}.", path);

        var tensors = new Dictionary<string, Tensor>();
        try
        {
            foreach (var shard in ReadWeightMap(path).GroupBy(pair => pair.Value, pair => pair.Key))
                foreach (var (name, tensor) in LoadShard(path, directory, shard.Key, shard.ToHashSet(), device))
                    tensors.Add(name, tensor);
            return tensors;
        }
        catch
        {
            foreach (var tensor in tensors.Values)
                tensor.Dispose();
            throw;
        }
    }

    private static Dictionary<string, Tensor> LoadShard(
        string index, string directory, string shard, HashSet<string> names, Device? device)
    {
        var path = Path.Combine(directory, shard);
        if (!File.Exists(path))
            throw new FileNotFoundException($"'{index}' names {shard}, which is not there.", path);
        using var stream = SafeTensors.Open(path);
        var tensors = SafeTensors.Read(stream, path, device, names);
        if (names.FirstOrDefault(name => !tensors.ContainsKey(name)) is not { } missing)
            return tensors;
        foreach (var tensor in tensors.Values)
            tensor.Dispose();
        throw new SafeTensorsException(index, $"it places '{missing}' in {shard}, which does not have it.");
    }

    /// <summary>Tensor names and the file of each.</summary>
    private static Dictionary<string, string> ReadWeightMap(string path)
    {
        using var stream = SafeTensors.Open(path);
        if (stream.Length > LengthLimit)
            throw new SafeTensorsException(path, $"it has {stream.Length} bytes, and the limit is {LengthLimit}.");
        try
        {
            using var json = JsonDocument.Parse(stream, new JsonDocumentOptions { AllowDuplicateProperties = false });
            if (json.RootElement.ValueKind != JsonValueKind.Object
                || !json.RootElement.TryGetProperty("weight_map", out var map) || map.ValueKind != JsonValueKind.Object)
                throw new SafeTensorsException(path, "it has no object weight_map.");
            return map.EnumerateObject().ToDictionary(
                property => property.Name,
                property => property.Value.ValueKind == JsonValueKind.String && IsPlainFileName(property.Value.GetString()!)
                    ? property.Value.GetString()!
                    : throw new SafeTensorsException(
                        path, $"it places '{property.Name}' in {property.Value.GetRawText()}, which is no plain file name."));
        }
        catch (Exception exception) when (exception is JsonException or InvalidOperationException)
        {
            throw new SafeTensorsException(path, $"it is not valid JSON: {exception.Message}", exception);
        }
    }

    /// <summary>Whether a name stays in its folder on every system: no separator, drive, stream or parent.</summary>
    private static bool IsPlainFileName(string name) =>
        name is not ("" or "." or "..") && name.AsSpan().IndexOfAny("/\\:\0") < 0;
}
