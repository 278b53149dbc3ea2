using System.Text;
using System.Text.Json;
using System.Text.Json.Nodes;

namespace LanguageModel.Reporting;

/// <summary>metrics.jsonl: one JSON object per line, for steps (loss, ...) and for validations (val_loss).</summary>
internal sealed class MetricsLog : IDisposable
{
    public const string FileName = "metrics.jsonl";

    private readonly FileStream _stream;

    /// <param name="run">The folder of the run.</param>
    /// <param name="length">What to keep of an earlier part of the run, in bytes.</param>
    public MetricsLog(string run, long length)
    {
        _stream = new FileStream(Path.Combine(run, FileName), FileMode.OpenOrCreate, FileAccess.Write, FileShare.Read);
        _stream.SetLength(Math.Min(length, _stream.Length));
        _stream.Seek(0, SeekOrigin.End);
    }

    /// <summary>Bytes written so far.</summary>
    public long Length => _stream.Position;

    public void Write(StepReport report, double seconds) => Write(new JsonObject
    {
        ["step"] = report.Step,
        ["loss"] = report.Loss,
        ["learning_rate"] = report.LearningRate,
        // JSON has no infinity; that is a step skipped for overflow.
        ["gradient_norm"] = double.IsFinite(report.GradientNorm) ? report.GradientNorm : null,
        ["tokens_per_second"] = Math.Round(report.TokensPerSecond),
        ["seconds"] = Math.Round(seconds, 3),
    });

    public void WriteValidation(int step, double valLoss) =>
        Write(new JsonObject { ["step"] = step, ["val_loss"] = valLoss });

    /// <summary>Steps with their losses and validations with theirs, for the chart.</summary>
    public static (List<(int step, double loss)> training, List<(int step, double loss)> validation) Read(string run)
    {
        var training = new List<(int, double)>();
        var validation = new List<(int, double)>();
        foreach (string line in File.ReadLines(Path.Combine(run, FileName)))
        {
            using var json = JsonDocument.Parse(line);
            int step = json.RootElement.GetProperty("step").GetInt32();
            if (json.RootElement.TryGetProperty("loss", out JsonElement loss) && loss.ValueKind == JsonValueKind.Number)
                training.Add((step, loss.GetDouble()));
            else if (json.RootElement.TryGetProperty("val_loss", out JsonElement value))
                validation.Add((step, value.GetDouble()));
        }

        return (training, validation);
    }

    public void Dispose() => _stream.Dispose();

    private void Write(JsonObject line)
    {
        _stream.Write(Encoding.UTF8.GetBytes(line.ToJsonString() + "\n"));
        _stream.Flush();
    }
}
