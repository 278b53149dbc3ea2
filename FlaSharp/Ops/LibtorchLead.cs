using FlaSharp.Interop;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// The calls of attention for which libtorch's kernels were measured to be faster than this library's, among those that both
/// know: the one place that says so.
/// </summary>
internal static class LibtorchLead
{
    // On an H200 none: forward is faster than libtorch's at every size, and the 2 to 3 % that libtorch gains with gradients at the
    // longest sequences cost that these repeat bit by bit (docs/gpu/2026-11-29-h200-attention.md).
    private static readonly Lead[] s_leads = [];

    /// <summary>Why libtorch takes the call; null if it does not.</summary>
    /// <param name="q">[B, Tq, H, K].</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="gradients">Whether backward may follow.</param>
    public static string? Of(Tensor q, AttentionSequences sequences, bool gradients)
    {
        foreach (var lead in s_leads)
            if (lead.Gradients == gradients && q.Size(3) >= lead.MinHeadSize && q.Size(3) <= lead.MaxHeadSize
                && sequences.Keys.MaxLength >= lead.MinKeys)
                return lead.Measured;
        return null;
    }

    /// <param name="MinHeadSize">The least K.</param>
    /// <param name="MaxHeadSize">The largest K.</param>
    /// <param name="MinKeys">The least length of the longest sequence of keys.</param>
    /// <param name="Gradients">Whether it is about forward and backward, or about forward alone.</param>
    /// <param name="Measured">On what and how much faster.</param>
    private sealed record Lead(int MinHeadSize, int MaxHeadSize, int MinKeys, bool Gradients, string Measured);
}
