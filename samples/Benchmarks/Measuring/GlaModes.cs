using FlaSharp;
using FlaSharp.Ops;
using LanguageModel;
using static TorchSharp.torch;

namespace Benchmarks.Measuring;

/// <summary>The modes of gated linear attention, as the benchmarks group them.</summary>
internal static class GlaModes
{
    /// <summary>The longest sequence for a recurrence of TorchSharp operations, or to compare a recurrence with chunks.</summary>
    public const long LongestRecurrence = 2048;

    /// <summary>The names that --ops takes, as in bench_peers.py, with their modes.</summary>
    public static IReadOnlyDictionary<string, LinearAttentionMode[]> Operations { get; } =
        new Dictionary<string, LinearAttentionMode[]>
        {
            ["gla"] = [LinearAttentionMode.Chunk, LinearAttentionMode.FusedChunk, LinearAttentionMode.Auto],
            ["recurrent"] = [LinearAttentionMode.FusedRecurrent],
        };

    /// <summary>The peer of a mode in the JSON of bench_peers.py.</summary>
    public static string PeerKey(LinearAttentionMode mode, GlaShape shape) =>
        $"fla {(mode == LinearAttentionMode.FusedRecurrent ? "fused_recurrent" : "chunk_gla")}|{shape.Key}";

    /// <exception cref="UserError">A name is not known.</exception>
    public static LinearAttentionMode[] Parse(string operations) =>
        [.. operations.Split(',').SelectMany(name => Operations.TryGetValue(name, out LinearAttentionMode[]? modes)
            ? modes
            : throw new UserError($"--ops {name}: choose of {string.Join(", ", Operations.Keys)}."))];

    /// <summary>What an operation takes for such a shape: "Chunk, cuda".</summary>
    public static string Plan(GlaShape shape, LinearAttentionMode mode, ScalarType dtype, Device device)
    {
        ModeChoice choice = Choose(shape, mode, dtype, device);
        return $"{choice.Mode}, {choice.Path}";
    }

    /// <summary>Whether a recurrence would run as thousands of small TorchSharp operations.</summary>
    public static bool IsHopeless(GlaShape shape, LinearAttentionMode mode, ScalarType dtype, Device device) =>
        mode == LinearAttentionMode.FusedRecurrent && shape.T > LongestRecurrence
        && Choose(shape, mode, dtype, device).Path == "torch";

    private static ModeChoice Choose(GlaShape shape, LinearAttentionMode mode, ScalarType dtype, Device device)
    {
        // Without memory behind it: only the device and the sizes count.
        using Tensor one = empty([1], dtype, device);
        using Tensor q = one.expand(shape.B, shape.T, shape.H, shape.D);
        return FlaOps.PlanGla(q, mode);
    }
}
