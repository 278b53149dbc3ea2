namespace Benchmarks.Measuring;

/// <summary>B, T, H, the head size P and the state size N of the state space duality, with one group.</summary>
internal sealed record SsdShape(long B, long T, long H, long P, long N)
{
    /// <summary>Those of the published comparisons, and of a small model.</summary>
    public static IReadOnlyList<SsdShape> All { get; } =
    [
        new(1, 8192, 96, 128, 128), new(4, 4096, 64, 128, 128), new(2, 16384, 16, 128, 128), new(8, 2048, 24, 64, 128),
    ];

    /// <summary>Of x, and of y.</summary>
    public long Elements => B * T * H * P;

    /// <summary>Of b, and of c.</summary>
    public long SharedElements => B * T * N;

    /// <summary>As the peers' figures are named, beside N.</summary>
    public string Key => $"B{B}_T{T}_H{H}_D{P}";

    /// <summary>Elements that forward has to move: x, b, c in and y out.</summary>
    public long ForwardElements => (2 * Elements) + (2 * SharedElements);

    /// <summary>Elements that backward has to move: x, b, c and y's gradient in; x's, b's and c's out.</summary>
    public long BackwardElements => (3 * Elements) + (4 * SharedElements);

    /// <exception cref="LanguageModel.UserError">It is no shape.</exception>
    public static SsdShape Parse(string text)
    {
        long[] sizes = GlaShape.ParseSizes("--shapes", text, "B,T,H,P,N");
        return new SsdShape(sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]);
    }

    public override string ToString() => $"{B},{T},{H},{P},{N}";
}
