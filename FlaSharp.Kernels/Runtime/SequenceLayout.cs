namespace FlaSharp.Kernels.Runtime;

/// <summary>
/// fla::Sequences: <paramref name="Count"/> sequences, each a batch row of <paramref name="Length"/> tokens; or, with
/// <paramref name="Offsets"/>, packed into batch row 0.
/// </summary>
/// <param name="Offsets">int32 [Count + 1] on the device, or 0.</param>
/// <param name="Count">S.</param>
/// <param name="Length">T; with offsets, of the longest sequence.</param>
/// <param name="IsReversed">1 if each runs from its last token to its first, else 0.</param>
internal readonly record struct SequenceLayout(nint Offsets, int Count, int Length, int IsReversed)
{
    public SequenceLayout Reversed => this with { IsReversed = 1 - IsReversed };
}
