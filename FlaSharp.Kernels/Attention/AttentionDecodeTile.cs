using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>The cut of the work for Attention/decode.cu and decode_join.cu.</summary>
/// <param name="Element">Of all tensors: bfloat16 or float16.</param>
/// <param name="Rows">Rows of a block, queries times the heads that share keys: 8 or 16.</param>
/// <param name="KeyChunks">Of 32 features.</param>
/// <param name="ValueChunks">Of 64 features.</param>
/// <param name="IsAligned">Whether rows are read 16 bytes at a time.</param>
internal sealed record AttentionDecodeTile(ElementType Element, int Rows, int KeyChunks, int ValueChunks, bool IsAligned)
{
    public const int MaxSize = 256;

    /// <summary>Of rows that are not aligned to 16 bytes: for more a thread has no registers.</summary>
    public const int MaxUnalignedKeySize = 224;

    /// <summary>Keys of a block at a time.</summary>
    public const int Step = 16 * Warps;

    /// <summary>Elements that a thread reads at once, if they are aligned.</summary>
    public const int Vector = 8;

    private const int Warps = 4;
    private const int JoinWarps = 8;
    private const int KeyChunk = 32;
    private const int ValueChunk = 64;
    private const int RowTile = 8;

    private static readonly ElementType[] s_elements = [ElementType.BFloat16, ElementType.Float16];
    private static readonly bool[] s_alignments = [true, false];
    private static readonly int[] s_sizes = [32, 64, 128, MaxUnalignedKeySize, MaxSize];

    /// <summary>Tiles that stand for all.</summary>
    public static IEnumerable<AttentionDecodeTile> Representatives =>
        from element in s_elements
        from isAligned in s_alignments
        from keySize in s_sizes
        where isAligned || keySize <= MaxUnalignedKeySize
        where element == ElementType.BFloat16 || (keySize == 128 && isAligned)
        from rows in new[] { RowTile, 2 * RowTile }
        select Of(element, keySize, keySize, rows, isAligned);

    /// <summary>As registers allow.</summary>
    public int BlocksPerMultiprocessor => KeyChunks + 2 * ValueChunks > 4 ? 2 : Rows > RowTile ? 3 : 4;

    /// <param name="element">Of all tensors.</param>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="rows">Queries times the heads that share keys; a block takes as many of them as it can.</param>
    /// <param name="isAligned">Whether rows can be read 16 bytes at a time.</param>
    public static AttentionDecodeTile Of(ElementType element, int keySize, int valueSize, int rows, bool isAligned)
    {
        var (keyChunks, valueChunks) = ((keySize + KeyChunk - 1) / KeyChunk, (valueSize + ValueChunk - 1) / ValueChunk);
        var isSmall = keyChunks <= 4 && valueChunks <= 2; // then a thread's registers hold two tiles of rows
        var blockRows = rows > RowTile && isSmall ? 2 * RowTile : RowTile;
        return new AttentionDecodeTile(element, blockRows, keyChunks, valueChunks, isAligned);
    }

    public KernelVariant Decode() =>
        new("Attention/decode.cu", "attention_decode",
            [
                $"ELEMENT={Element.Name()}", $"VECTOR={(IsAligned ? Vector : 1)}", $"ROWS={Rows}", $"KEY_CHUNKS={KeyChunks}",
                $"VALUE_CHUNKS={ValueChunks}", $"WARPS={Warps}", $"MIN_BLOCKS={BlocksPerMultiprocessor}",
            ],
            32 * Warps, SharedBytes: 0);

    public KernelVariant Join() =>
        new("Attention/decode_join.cu", "attention_decode_join",
            [$"ELEMENT={Element.Name()}", $"ROWS={Rows}", $"WARPS={JoinWarps}"], 32 * JoinWarps, SharedBytes: 0);
}
