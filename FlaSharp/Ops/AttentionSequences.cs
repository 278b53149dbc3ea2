using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The sequences of queries and, one for each of them, those of keys.</summary>
internal sealed class AttentionSequences
{
    private AttentionSequences(Sequences queries, Sequences keys) => (Queries, Keys) = (queries, keys);

    public Sequences Queries { get; }

    /// <summary>The same object if they lie where the queries lie.</summary>
    public Sequences Keys { get; }

    /// <summary>The packed sequences, or one segment that holds for each row of the batch.</summary>
    public AttentionSegment[] Segments => Queries.IsPacked
        ? [.. Enumerable.Range(0, Queries.Count).Select(s =>
            new AttentionSegment(Queries.Start(s), Queries.Length(s), Keys.Start(s), Keys.Length(s)))]
        : [new(0, Queries.MaxLength, 0, Keys.MaxLength)];

    /// <summary>Reads and checks the layout of q [B, Tq, ...] and k [B, Tk, ...].</summary>
    /// <exception cref="ArgumentException">The offsets do not fit the tensors or each other.</exception>
    public static AttentionSequences Of(Tensor q, Tensor k, Tensor? cuSeqlensQ, Tensor? cuSeqlensK)
    {
        if (cuSeqlensQ is null && cuSeqlensK is not null)
            throw new ArgumentException("cuSeqlensK needs cuSeqlensQ: give both.", nameof(cuSeqlensK));
        if (cuSeqlensQ is not null && cuSeqlensK is null && q.Size(1) != k.Size(1))
            throw new ArgumentException(
                $"cuSeqlensK must be given, because q has {q.Size(1)} tokens and k has {k.Size(1)}.", nameof(cuSeqlensK));

        var queries = Sequences.Of(q.Size(0), q.Size(1), cuSeqlensQ, nameof(cuSeqlensQ));
        var isShared = cuSeqlensK is null || ReferenceEquals(cuSeqlensK, cuSeqlensQ);
        var keys = isShared && q.Size(1) == k.Size(1)
            ? queries
            : Sequences.Of(k.Size(0), k.Size(1), cuSeqlensK, nameof(cuSeqlensK));
        if (keys.Count != queries.Count)
            throw new ArgumentException(
                $"cuSeqlensK must describe as many sequences as cuSeqlensQ, {queries.Count}, but has {keys.Count}.",
                nameof(cuSeqlensK));
        return new AttentionSequences(queries, keys);
    }
}
