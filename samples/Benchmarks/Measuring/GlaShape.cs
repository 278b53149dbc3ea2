using System.Globalization;
using LanguageModel;

namespace Benchmarks.Measuring;

/// <summary>B, T, H and the head size D of gated linear attention with K = V = D.</summary>
internal sealed record GlaShape(long B, long T, long H, long D)
{
    /// <summary>Those that flash-linear-attention measures itself by.</summary>
    public static IReadOnlyList<GlaShape> Fla { get; } =
    [
        new(1, 8192, 96, 128), new(2, 16384, 16, 128), new(4, 2048, 16, 128),
        new(4, 4096, 64, 128), new(8, 2048, 32, 256), new(8, 1024, 8, 64),
    ];

    /// <summary>Small and odd ones.</summary>
    public static IReadOnlyList<GlaShape> Odd { get; } =
    [
        new(8, 1024, 16, 8), new(8, 1024, 16, 16), new(8, 1024, 16, 32), new(8, 1024, 16, 64),
        new(2, 1000, 3, 60), new(1, 4096, 4, 100), new(1, 131072, 2, 64),
    ];

    /// <summary>Of each of the tensors.</summary>
    public long Elements => B * T * H * D;

    /// <summary>As bench_peers.py names it.</summary>
    public string Key => $"B{B}_T{T}_H{H}_D{D}";

    /// <exception cref="UserError">It is no shape.</exception>
    public static GlaShape Parse(string text)
    {
        long[] sizes = ParseSizes("--shapes", text, "B,T,H,D");
        return new GlaShape(sizes[0], sizes[1], sizes[2], sizes[3]);
    }

    /// <summary>As many sizes of at least 1 as the pattern has letters.</summary>
    /// <exception cref="UserError">They are not.</exception>
    public static long[] ParseSizes(string option, string text, string pattern)
    {
        string[] parts = text.Split(',');
        long[] sizes = [.. parts.Select(part =>
            long.TryParse(part, NumberStyles.None, CultureInfo.InvariantCulture, out long size) ? size : 0)];
        return sizes.Length == pattern.Split(',').Length && sizes.All(size => size is > 0 and < int.MaxValue)
            ? sizes
            : throw new UserError($"{option} {text}: use {pattern}, whole numbers of at least 1.");
    }

    public override string ToString() => $"{B},{T},{H},{D}";
}
