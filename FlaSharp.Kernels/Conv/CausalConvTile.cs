using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Conv;

/// <summary>The cut of the work for Conv/causal_conv_*.cu: the constants of fla/causal_conv.cuh.</summary>
/// <param name="Element">Of x.</param>
/// <param name="Width">W.</param>
/// <param name="Vector">Neighbouring channels of a thread.</param>
/// <param name="IsSilu">Whether SiLU follows.</param>
internal sealed record CausalConvTile(ElementType Element, int Width, int Vector, bool IsSilu)
{
    /// <summary>Widths up to this one have a tile.</summary>
    public const int MaxWidth = 32;

    /// <summary>Of a block. Each has a run of tokens of its own.</summary>
    public const int Warps = 4;

    private const int Threads = 32 * Warps;
    private const int MaxFastWidth = 8; // for more a thread has no registers to hold several channels
    private const int MaxNarrowWidth = 4;
    private static readonly bool[] s_withAndWithout = [true, false];
    private static readonly int[] s_alignments = [16, 8, 1];

    /// <summary>Channels of a warp.</summary>
    public int Group => 32 * Vector;

    /// <summary>
    /// The tile of most channels for a thread that fit into its registers and are read and written at once.
    /// </summary>
    /// <param name="element">Of x.</param>
    /// <param name="width">At most <see cref="MaxWidth"/>.</param>
    /// <param name="isSilu">Whether SiLU follows.</param>
    /// <param name="isBackward">Backward, where a thread holds twice as much.</param>
    /// <param name="alignment">Bytes that divide every address of a token, up to 16.</param>
    public static CausalConvTile Of(ElementType element, int width, bool isSilu, bool isBackward, int alignment)
    {
        var channels = width > MaxFastWidth ? 1 : width > MaxNarrowWidth || isBackward ? 4 : 8;
        var aligned = alignment % 8 == 0 ? alignment / element.Bytes() : 1;
        return new CausalConvTile(element, width, Math.Min(channels, aligned), isSilu);
    }

    /// <summary>Tiles that stand for all: every width that is fast, and every vector at some of them.</summary>
    public static IEnumerable<CausalConvTile> Representatives(bool isBackward) =>
        from element in ElementTypes.All
        from width in Enumerable.Range(1, MaxFastWidth).Append(MaxWidth)
        from alignment in s_alignments
        let isUsual = width is MaxNarrowWidth or MaxFastWidth or MaxWidth
        where isUsual || (alignment == s_alignments[0] && element == ElementType.BFloat16)
        from isSilu in s_withAndWithout
        where isSilu || (width == MaxNarrowWidth && element == ElementType.BFloat16)
        select Of(element, width, isSilu, isBackward, alignment);

    public KernelVariant Forward() => Variant("forward", steps: 4, minBlocks: 4);

    public KernelVariant Backward() =>
        Variant("backward", steps: 4, minBlocks: Width > MaxNarrowWidth ? 2 : Element == ElementType.Float32 ? 3 : 4);

    /// <summary>Adds up the parts that <see cref="Backward"/> leaves.</summary>
    public KernelVariant Sum() => (this with { IsSilu = false }).Variant("sum", steps: 1, minBlocks: 1);

    private KernelVariant Variant(string pass, int steps, int minBlocks) =>
        new($"Conv/causal_conv_{pass}.cu", $"causal_conv_{pass}",
            [
                $"ELEMENT={Element.Name()}", $"WIDTH={Width}", $"VECTOR={Vector}", $"STEPS={steps}", $"WARPS={Warps}",
                $"MIN_BLOCKS={minBlocks}", $"SILU={(IsSilu ? 1 : 0)}",
            ],
            Threads, SharedBytes: 0);
}
