using System.Numerics;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>
/// Cuts all sequences of a call into chunks of equal size and lays the chunks along one dimension, so that work within chunks is one
/// batch. Level l holds the l-th chunk of every sequence that is long enough; states pass from level to level.
/// </summary>
/// <remarks>
/// Where every sequence fills its chunks, cutting is a view. Otherwise the tokens are copied to their places, the rest is zero, and
/// chunks lie level by level, longest sequence first: the sequences of a level are then always the first ones ("ranked" order).
/// </remarks>
internal sealed class ChunkLayout
{
    private readonly Sequences _sequences;
    private readonly long[] _levelSizes;    // how many sequences have an l-th chunk
    private readonly int[] _ranked;         // the sequence of each rank
    private readonly long[]? _places;       // token -> place among the chunks' tokens; null: cutting is a view

    public ChunkLayout(Sequences sequences, int maxChunkSize)
    {
        _sequences = sequences;
        Size = Math.Min(maxChunkSize, (int)BitOperations.RoundUpToPowerOf2((uint)Math.Max(1, sequences.MaxLength)));
        var chunks = Enumerable.Range(0, sequences.Count).Select(s => (sequences.Length(s) + Size - 1) / Size).ToArray();
        _ranked = [.. Enumerable.Range(0, sequences.Count).OrderByDescending(s => chunks[s])]; // a stable sort
        _levelSizes = new long[chunks.Max()];
        for (var level = 0; level < _levelSizes.Length; level++)
            _levelSizes[level] = chunks.Count(count => count > level);
        if (sequences.IsPacked || sequences.MaxLength % Size != 0)
            _places = Places();
    }

    /// <summary>C, the tokens of a chunk: a power of two, at most the smallest that holds the longest sequence.</summary>
    public int Size { get; }

    public int Levels => _levelSizes.Length;

    /// <summary>How many sequences have a chunk at this level: the first ones in ranked order.</summary>
    public long LevelSize(int level) => _levelSizes[level];

    private long Chunks => _levelSizes.Sum();

    /// <summary>[B, T, ...] to [chunks, C, ...].</summary>
    public Tensor Cut(Tensor x)
    {
        var flat = x.flatten(0, 1);
        if (_places is not null)
        {
            var sizes = flat.shape;
            sizes[0] = Chunks * Size;
            flat = zeros(sizes, dtype: x.dtype, device: x.device).index_copy(0, tensor(_places, device: x.device), flat);
        }
        return flat.unflatten(0, -1, Size);
    }

    /// <summary>[chunks, C, ...] to [B, T, ...]: undoes <see cref="Cut"/>.</summary>
    public Tensor Join(Tensor chunks)
    {
        var flat = chunks.flatten(0, 1);
        if (_places is not null)
            flat = flat.index_select(0, tensor(_places, device: flat.device));
        return _sequences.IsPacked ? flat.unsqueeze(0) : flat.unflatten(0, _sequences.Count, -1);
    }

    /// <summary>[chunks, ...] to one [sequences of the level, ...] per level.</summary>
    public Tensor[] SplitLevels(Tensor chunks) =>
        _places is null ? chunks.unflatten(0, -1, Levels).unbind(1) : chunks.split(_levelSizes);

    /// <summary>Undoes <see cref="SplitLevels"/>.</summary>
    public Tensor JoinLevels(IReadOnlyList<Tensor> levels) =>
        _places is null ? stack(levels, 1).flatten(0, 1) : cat([.. levels]);

    /// <summary>
    /// Runs a recurrence over the levels: <paramref name="step"/> gets the level and the states [sequences of the level, ...] before
    /// it and returns those after it.
    /// </summary>
    /// <param name="initial">[S, ...].</param>
    /// <returns>The states after each sequence's last chunk, [S, ...]; the initial one of an empty sequence.</returns>
    public Tensor PassStates(Tensor initial, Func<int, Tensor, Tensor> step)
    {
        var order = Array.ConvertAll(_ranked, s => (long)s);
        var isRanked = order.SequenceEqual(order.Order());
        var state = isRanked ? initial : initial.index_select(0, tensor(order, device: initial.device));
        var finished = new List<Tensor>(); // of ever higher ranks
        for (var level = 0; level < Levels; level++)
        {
            var (active, held) = (LevelSize(level), state.size(0));
            if (active < held)
            {
                finished.Insert(0, state.narrow(0, active, held - active));
                state = state.narrow(0, 0, active);
            }
            state = step(level, state);
        }
        finished.Insert(0, state);
        var final = finished.Count == 1 ? state : cat(finished);
        if (isRanked)
            return final;
        var ranks = new long[order.Length];
        for (var rank = 0; rank < order.Length; rank++)
            ranks[_ranked[rank]] = rank;
        return final.index_select(0, tensor(ranks, device: final.device));
    }

    private long[] Places()
    {
        var levelStarts = new long[Levels];
        for (var level = 1; level < Levels; level++)
            levelStarts[level] = levelStarts[level - 1] + _levelSizes[level - 1];

        var places = new long[_sequences.Tokens];
        for (var rank = 0; rank < _ranked.Length; rank++)
        {
            var s = _ranked[rank];
            for (var t = 0; t < _sequences.Length(s); t++)
                places[_sequences.Start(s) + t] = (levelStarts[t / Size] + rank) * Size + t % Size;
        }
        return places;
    }
}
