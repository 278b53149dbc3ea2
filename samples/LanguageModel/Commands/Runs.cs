using System.Globalization;
using LanguageModel.Training;

namespace LanguageModel.Commands;

/// <summary>The folders of runs.</summary>
internal static class Runs
{
    private const string Parent = "runs";

    /// <summary>The checkpoint to resume from.</summary>
    /// <exception cref="UserError">There is none.</exception>
    public static string FindCheckpoint(TrainRequest request)
    {
        string? folder = request.ResumeFrom ?? request.Out ?? Newest();
        if (folder is null)
            throw new UserError($"--resume: there is no run under {Path.GetFullPath(Parent)}; name one.");
        if (Checkpoint.Is(folder))
            return Path.GetFullPath(folder);
        return Checkpoint.Latest(Path.GetFullPath(folder))
            ?? throw new UserError($"--resume {folder}: there is no checkpoint in it.");
    }

    /// <summary>The folder of a new run, made and found writable.</summary>
    /// <exception cref="UserError">It holds a run already, or cannot be written to.</exception>
    public static string Create(TrainRequest request, LayerKind layer)
    {
        string time = DateTime.Now.ToString("yyyyMMdd-HHmmss", CultureInfo.InvariantCulture);
        string name = $"{layer.ToString().ToLowerInvariant()}-{time}";
        string folder = Path.GetFullPath(request.Out ?? Path.Combine(Parent, name));
        if (Checkpoint.Latest(folder) is not null)
            throw new UserError($"{folder} holds a run already: continue it with --resume, or choose another --out.");
        RequireWritable(folder);
        return folder;
    }

    public static void RequireWritable(string folder)
    {
        try
        {
            Directory.CreateDirectory(folder);
            using FileStream probe = File.Create(Path.Combine(folder, ".probe"), 1, FileOptions.DeleteOnClose);
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or ArgumentException)
        {
            throw new UserError($"--out {folder} cannot be written to: {e.Message}");
        }
    }

    private static string? Newest() => Directory.Exists(Parent)
        ? Directory.EnumerateDirectories(Parent)
            .Where(run => Checkpoint.Latest(run) is not null)
            .MaxBy(run => Directory.GetLastWriteTimeUtc(Checkpoint.Latest(run)!))
        : null;
}
