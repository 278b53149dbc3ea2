namespace FlaSharp;

/// <summary>How a linear-attention operation walks over time. All modes compute the same function.</summary>
/// <remarks>
/// On a GPU, chunks take bfloat16 operands with float32 sums; a float32 operand is two of them: results are right to about 1e-5.
/// </remarks>
public enum LinearAttentionMode
{
    /// <summary>The fastest for the device and the shape; the operation can be asked what it takes and why.</summary>
    Auto,

    /// <summary>Chunks of the sequence as matrix products, all chunks at once, with the states between them in memory.</summary>
    Chunk,

    /// <summary>Chunks as matrix products one after the other, with one running state.</summary>
    FusedChunk,

    /// <summary>One token after the other, in float32: the recurrence as it is defined.</summary>
    FusedRecurrent,
}
