using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>
/// A call of softmax attention on a GPU: sizes and options, the same for forward and backward. Query i of a sequence is aligned
/// with its key i + Tk - Tq.
/// </summary>
internal sealed record AttentionProblem
{
    public required GpuDevice Device { get; init; }

    /// <summary>Of q, k, v and o: bfloat16 or float16.</summary>
    public required ElementType Element { get; init; }

    /// <summary>The sequences of queries; their length is Tq.</summary>
    public required SequenceLayout Queries { get; init; }

    /// <summary>The sequences of keys, as many; their length is Tk.</summary>
    public required SequenceLayout Keys { get; init; }

    /// <summary>Tokens of a batch row of q and o: Tq, or those of all packed sequences.</summary>
    public required int QueryTime { get; init; }

    /// <summary>Tokens of a batch row of k and v.</summary>
    public required int KeyTime { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>Hkv, the heads of k and v: query head h reads head h / (H / Hkv).</summary>
    public required int KvHeads { get; init; }

    /// <summary>K.</summary>
    public required int KeySize { get; init; }

    /// <summary>V.</summary>
    public required int ValueSize { get; init; }

    /// <summary>Whether a query sees the keys up to its aligned one only.</summary>
    public required bool IsCausal { get; init; }

    /// <summary>How many of these it sees, the last ones; 0 for all.</summary>
    public int Window { get; init; }

    public required float Scale { get; init; }

    /// <summary>c: the scaled products s become c tanh(s / c); 0 for none.</summary>
    public float Softcap { get; init; }

    /// <summary>The probability that a weight becomes 0.</summary>
    public float Dropout { get; init; }

    /// <summary>Of the random numbers that dropout draws.</summary>
    public ulong Seed { get; init; }

    /// <summary>Where in the seed's random numbers the call begins.</summary>
    public ulong Offset { get; init; }

    /// <summary>float32 [H], a logit per head with value 0; 0 for none.</summary>
    public nint Sinks { get; init; }

    /// <summary>float32 [H]: slope times distance to the aligned key is subtracted from a score; 0 for none.</summary>
    public nint AlibiSlopes { get; init; }

    /// <summary>Whether it is more than the softmax of scaled products of the keys that a query sees.</summary>
    public bool HasOptions =>
        !(Scale > 0) || Window > 0 || Softcap > 0 || Dropout > 0 || Sinks != 0 || AlibiSlopes != 0;
}
