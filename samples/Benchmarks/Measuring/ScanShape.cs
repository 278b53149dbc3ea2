namespace Benchmarks.Measuring;

/// <summary>B, E, T and N of a selective scan with one group, as the peer orders them.</summary>
internal sealed record ScanShape(long B, long E, long T, long N)
{
    private const int ForwardTensors = 4; // u, delta, z; y
    private const int BackwardTensors = 7; // u, delta, z, gradient of y; gradients of the three

    /// <summary>Inner widths of the published models, and a long sequence.</summary>
    public static IReadOnlyList<ScanShape> All { get; } =
        [new(1, 4096, 8192, 16), new(4, 2048, 4096, 16), new(8, 1536, 2048, 16), new(1, 2048, 65536, 16)];

    /// <summary>Of u.</summary>
    public long Elements => B * T * E;

    /// <summary>As the peers' figures are named.</summary>
    public string Key => $"B{B}_E{E}_T{T}_N{N}";

    /// <summary>Elements that forward has to move; b and c are small beside them.</summary>
    public long ForwardElements => ForwardTensors * Elements;

    /// <summary>The same of backward.</summary>
    public long BackwardElements => BackwardTensors * Elements;

    /// <exception cref="LanguageModel.UserError">It is no shape.</exception>
    public static ScanShape Parse(string text)
    {
        long[] sizes = GlaShape.ParseSizes("--shapes", text, "B,E,T,N");
        return new ScanShape(sizes[0], sizes[1], sizes[2], sizes[3]);
    }

    public override string ToString() => $"{B},{E},{T},{N}";
}
