using System.Text;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>Matches the tensors of a checkpoint with the parameters of a model.</summary>
internal static class Checkpoint
{
    private const string HeadKey = "lm_head.weight";
    private const string GateKey = ".mlp.gate_proj.weight";
    private const int ListedKeys = 20;

    /// <summary>The tensors under the names of the model's parameters, one for each.</summary>
    /// <param name="tensors">As they are in the file.</param>
    /// <param name="parameters">The model's state dict.</param>
    /// <param name="config">The model's configuration.</param>
    /// <exception cref="CheckpointMismatchException">They do not fit one to one.</exception>
    public static Dictionary<string, Tensor> Match(
        IReadOnlyDictionary<string, Tensor> tensors, Dictionary<string, Tensor> parameters, ModelConfig config)
    {
        var found = new Dictionary<string, Tensor>();
        foreach (var (key, tensor) in tensors)
            if (!key.EndsWith(".inv_freq", StringComparison.Ordinal)) // older files keep the angles of the rotary embedding
                found[CurrentName(key)] = tensor;
        SplitGates(found, parameters);
        if (config.TieWordEmbeddings)
            DropTiedHead(found, $"{config.Names.Root}.{config.Names.Embeddings}.weight");

        string[] missing = [.. parameters.Keys.Where(key => !found.ContainsKey(key)).Order(StringComparer.Ordinal)];
        string[] unexpected = [.. found.Keys.Where(key => !parameters.ContainsKey(key)).Order(StringComparer.Ordinal)];
        string[] unfit = [.. found.Keys
            .Where(key => parameters.TryGetValue(key, out var parameter) && !Fits(found[key], parameter))
            .Order(StringComparer.Ordinal)];
        if (missing.Length + unexpected.Length + unfit.Length == 0)
            return found;

        var message = new StringBuilder(
            $"The checkpoint does not fit the model (model_type {config.ModelType}). Nothing was loaded.");
        if (GuessType(found) is { } type && type != config.ModelType)
            message.Append($"\nIts tensors look like those of a {type} model.");
        List(message, "Missing", missing, key => $"{key} {Shape(parameters[key])}");
        List(message, "Unexpected", unexpected, key => $"{key} {Shape(found[key])}");
        List(message, "Of another shape or dtype", unfit,
            key => $"{key}: {found[key].dtype} {Shape(found[key])} in the checkpoint, {Shape(parameters[key])} in the model");
        throw new CheckpointMismatchException(message.ToString(), missing, unexpected, unfit);
    }

    /// <summary>state-spaces writes embedding where all others write embeddings.</summary>
    private static string CurrentName(string key) => key == "backbone.embedding.weight" ? "backbone.embeddings.weight" : key;

    /// <summary>Older files of flash-linear-attention have an MLP's gate and up projections in one matrix [2 I, D].</summary>
    private static void SplitGates(Dictionary<string, Tensor> found, Dictionary<string, Tensor> parameters)
    {
        foreach (var gate in found.Keys.Where(key => key.EndsWith(GateKey, StringComparison.Ordinal)).ToArray())
        {
            var up = gate.Replace("gate_proj", "up_proj", StringComparison.Ordinal);
            if (found.ContainsKey(up) || !parameters.TryGetValue(gate, out var parameter)
                || found[gate].dim() != 2 || found[gate].size(0) != 2 * parameter.size(0))
                continue;
            var halves = found[gate].chunk(2, 0);
            (found[gate], found[up]) = (halves[0], halves[1]);
        }
    }

    /// <summary>Some files keep a copy of tied embeddings as the head.</summary>
    private static void DropTiedHead(Dictionary<string, Tensor> found, string embeddings)
    {
        if (!found.TryGetValue(HeadKey, out var head) || !found.TryGetValue(embeddings, out var weight))
            return;
        if (head.dtype == weight.dtype && head.shape.SequenceEqual(weight.shape) && head.eq(weight).all().item<bool>())
            found.Remove(HeadKey);
    }

    private static bool Fits(Tensor tensor, Tensor parameter) =>
        tensor.is_floating_point() && tensor.shape.SequenceEqual(parameter.shape);

    /// <summary>The architecture whose mark the names or shapes bear.</summary>
    private static string? GuessType(Dictionary<string, Tensor> found) =>
        found.Keys.Any(key => key.Contains(".gk_proj.", StringComparison.Ordinal)) ? "gla"
        : found.FirstOrDefault(pair => pair.Key.EndsWith(".mixer.A_log", StringComparison.Ordinal)).Value is { } decay
            ? decay.dim() == 2 ? "mamba" : "mamba2"
        : found.Keys.Any(key => key.Contains(".self_attn.q_proj.", StringComparison.Ordinal)) ? "llama"
        : found.Keys.Any(key => key.Contains(".attn.q_proj.", StringComparison.Ordinal)) ? "transformer"
        : null;

    private static void List(StringBuilder message, string title, string[] keys, Func<string, string> describe)
    {
        if (keys.Length == 0)
            return;
        message.Append($"\n{title} ({keys.Length}):");
        foreach (var key in keys.Take(ListedKeys))
            message.Append($"\n  {describe(key)}");
        if (keys.Length > ListedKeys)
            message.Append($"\n  and {keys.Length - ListedKeys} more");
    }

    private static string Shape(Tensor tensor) => $"[{string.Join(", ", tensor.shape)}]";
}
