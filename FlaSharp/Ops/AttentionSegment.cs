using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>Queries and the keys they may see, adjacent in time: a packed sequence, or everything (in each row of the batch).</summary>
internal readonly record struct AttentionSegment(int QueryStart, int Queries, int KeyStart, int Keys)
{
    /// <summary>Reads and checks the layout of q [B, Tq, ...] and k [B, Tk, ...].</summary>
    /// <exception cref="ArgumentException">The offsets do not fit the tensors or each other.</exception>
    public static AttentionSegment[] Of(Tensor q, Tensor k, Tensor? cuSeqlensQ, Tensor? cuSeqlensK)
    {
        if (cuSeqlensQ is null)
        {
            if (cuSeqlensK is not null)
                throw new ArgumentException("cuSeqlensK needs cuSeqlensQ: give both.", nameof(cuSeqlensK));
            return [new(0, checked((int)q.size(1)), 0, checked((int)k.size(1)))];
        }

        if (cuSeqlensK is null && q.size(1) != k.size(1))
            throw new ArgumentException(
                $"cuSeqlensK must be given, because q has {q.size(1)} tokens and k has {k.size(1)}.", nameof(cuSeqlensK));
        var queries = Sequences.Of(q.size(0), q.size(1), cuSeqlensQ, nameof(cuSeqlensQ));
        var keys = cuSeqlensK is null ? queries : Sequences.Of(k.size(0), k.size(1), cuSeqlensK, nameof(cuSeqlensK));
        if (keys.Count != queries.Count)
            throw new ArgumentException(
                $"cuSeqlensK must describe as many sequences as cuSeqlensQ, {queries.Count}, but has {keys.Count}.", nameof(cuSeqlensK));
        return [.. Enumerable.Range(0, queries.Count).Select(s =>
            new AttentionSegment(queries.Start(s), queries.Length(s), keys.Start(s), keys.Length(s)))];
    }
}
