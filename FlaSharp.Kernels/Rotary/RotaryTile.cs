using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Rotary;

/// <summary>The constants of fla/rotary.cuh.</summary>
/// <param name="Element">Of the tensors.</param>
/// <param name="Vector">Neighbours that a thread reads at once.</param>
/// <param name="IsInterleaved">Whether neighbours form the pairs.</param>
internal sealed record RotaryTile(ElementType Element, int Vector, bool IsInterleaved)
{
    private const int VectorBytes = 16;

    private static readonly bool[] s_forms = [false, true];

    /// <summary>All there are.</summary>
    public static IEnumerable<RotaryTile> All =>
        from element in ElementTypes.All
        from vector in new[] { VectorBytes / element.Bytes(), 1 }
        from isInterleaved in s_forms
        select new RotaryTile(element, vector, isInterleaved);

    public IReadOnlyList<string> Defines =>
        [$"ELEMENT={Element.Name()}", $"VECTOR={Vector}", $"INTERLEAVED={(IsInterleaved ? 1 : 0)}"];

    /// <param name="element">Of the tensors.</param>
    /// <param name="isInterleaved">Whether neighbours form the pairs.</param>
    /// <param name="multiples">
    /// A number whose lowest bit is the largest power of 2 that divides the number of pairs, sizes, addresses and strides.
    /// </param>
    public static RotaryTile Of(ElementType element, bool isInterleaved, long multiples)
    {
        var vector = VectorBytes / element.Bytes();
        return new RotaryTile(element, multiples % vector == 0 ? vector : 1, isInterleaved);
    }
}
