using System.Globalization;
using System.Text.Json;
using System.Text.Json.Serialization;
using FlaSharp.Models;

namespace LanguageModel.Training;

/// <summary>
/// A folder with config.json and model.safetensors, which any user of the model format can load, and beside them
/// optimizer.safetensors and training.json. It appears under its name only when complete.
/// </summary>
internal static class Checkpoint
{
    private const string Prefix = "checkpoint-";
    private const string Unfinished = ".unfinished-";
    private const string OptimizerFile = "optimizer.safetensors";
    private const string StateFile = "training.json";
    private const int Kept = 2;

    private static readonly JsonSerializerOptions s_json = new()
    {
        WriteIndented = true,
        PropertyNamingPolicy = JsonNamingPolicy.SnakeCaseLower,
        Converters = { new JsonStringEnumConverter(JsonNamingPolicy.CamelCase) },
    };

    /// <summary>Writes a checkpoint and removes all but the last two. Returns its folder.</summary>
    public static string Save(string run, CausalLM model, AdamW optimizer, TrainingState state)
    {
        string target = Path.Combine(run, $"{Prefix}{state.Step.ToString("D6", CultureInfo.InvariantCulture)}");
        string temporary = Path.Combine(run, $"{Unfinished}{state.Step}");
        RemoveUnfinished(run);
        if (Directory.Exists(target))
            return target;

        Directory.CreateDirectory(temporary);
        model.SavePretrained(temporary);
        optimizer.Save(Path.Combine(temporary, OptimizerFile));
        File.WriteAllText(Path.Combine(temporary, StateFile), JsonSerializer.Serialize(state, s_json));
        Directory.Move(temporary, target);

        foreach (string old in All(run).SkipLast(Kept))
            Directory.Delete(old, recursive: true);
        return target;
    }

    /// <summary>The newest checkpoint of a run; null if there is none.</summary>
    public static string? Latest(string run) => All(run).LastOrDefault();

    /// <summary>Whether a folder is a checkpoint of this program.</summary>
    public static bool Is(string folder) => File.Exists(Path.Combine(folder, StateFile));

    /// <exception cref="UserError">The folder is not a checkpoint of this program.</exception>
    public static TrainingState ReadState(string checkpoint)
    {
        string path = Path.Combine(checkpoint, StateFile);
        try
        {
            return JsonSerializer.Deserialize<TrainingState>(File.ReadAllText(path), s_json)
                ?? throw new UserError($"{path} is empty.");
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or JsonException)
        {
            throw new UserError($"{checkpoint} is not a checkpoint of this program: {e.Message}");
        }
    }

    public static void LoadOptimizer(string checkpoint, AdamW optimizer, long updates) =>
        optimizer.Load(Path.Combine(checkpoint, OptimizerFile), updates);

    private static void RemoveUnfinished(string run)
    {
        foreach (string folder in Directory.EnumerateDirectories(run, Unfinished + "*"))
            Directory.Delete(folder, recursive: true);
    }

    private static IEnumerable<string> All(string run) => Directory.Exists(run)
        ? Directory.EnumerateDirectories(run, Prefix + "*").Order(StringComparer.Ordinal)
        : [];
}
