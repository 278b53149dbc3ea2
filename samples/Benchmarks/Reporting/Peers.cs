using System.Text.Json;
using LanguageModel;

namespace Benchmarks.Reporting;

/// <summary>The figures of other libraries by key, as "fla chunk_gla|B1_T8192_H96_D128".</summary>
internal sealed class Peers
{
    private readonly Dictionary<string, PeerFigure> _figures = [];

    private Peers()
    {
    }

    public static Peers None { get; } = new();

    /// <param name="file">The JSON that bench_peers.py wrote.</param>
    /// <exception cref="UserError">There is no such file, or it is another.</exception>
    public static Peers Load(string file)
    {
        var peers = new Peers();
        try
        {
            using JsonDocument json = JsonDocument.Parse(File.ReadAllBytes(file));
            foreach (JsonProperty entry in json.RootElement.EnumerateObject())
            {
                peers._figures[entry.Name] = new PeerFigure(Number(entry, "fwd_ms"), Number(entry, "fwdbwd_ms"),
                    Number(entry, "first_s"), Number(entry, "peak_extra_mb"));
            }
        }
        catch (Exception e) when (e is IOException or UnauthorizedAccessException or JsonException or InvalidOperationException)
        {
            throw new UserError($"--peers {file} is no JSON of bench_peers.py: {e.Message}");
        }

        return peers;
    }

    public PeerFigure? Find(string key) => _figures.GetValueOrDefault(key);

    /// <summary>How many times as long the peer takes, or as much; null unless both are known.</summary>
    public static double? Ratio(double? peer, double? own) => peer / own;

    private static double? Number(JsonProperty entry, string name) =>
        entry.Value.TryGetProperty(name, out JsonElement value) && value.ValueKind == JsonValueKind.Number
            ? value.GetDouble()
            : null;
}
