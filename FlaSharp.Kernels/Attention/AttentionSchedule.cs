using System.Collections.Concurrent;

namespace FlaSharp.Kernels.Attention;

/// <summary>
/// In which order the blocks of threads of hopper_forward.cu, as many as run at once, take tiles of queries: each takes the next
/// one of every round, whose lengths differ under a causal mask, and all should end together.
/// </summary>
/// <param name="Section">Heads of sequences whose tiles follow one another, the longest ones first.</param>
/// <param name="TurnsBack">Whether every other round is dealt in reverse.</param>
internal readonly record struct AttentionSchedule(int Section, bool TurnsBack)
{
    private const int MostRounds = 64; // more even out
    private const int Candidates = 16;
    private const int MostKept = 1024;

    private static readonly ConcurrentDictionary<Question, AttentionSchedule> s_kept = new();

    /// <summary>The best schedule with sections of half of the limit up to the limit.</summary>
    /// <param name="problem">The call; packed sequences count as the longest one.</param>
    /// <param name="tile">The tile.</param>
    /// <param name="limit">The largest section, whose keys and values fit into the L2 cache.</param>
    /// <param name="blocks">Blocks of threads.</param>
    public static AttentionSchedule Choose(AttentionProblem problem, AttentionTile tile, int limit, int blocks) =>
        Choose(new(problem.Queries.Length, problem.Keys.Length, problem.IsCausal, problem.Window,
            problem.Queries.Count * problem.Heads, problem.Heads / problem.KvHeads, tile.QueryRows, tile.KeyRows, limit, blocks));

    /// <summary>The best schedule with sections of half of the limit up to the limit.</summary>
    public static AttentionSchedule Choose(Question question)
    {
        if (s_kept.TryGetValue(question, out var kept))
            return kept;
        if (s_kept.Count >= MostKept)
            s_kept.Clear();
        return s_kept[question] = Search(question);
    }

    /// <summary>The key tiles that the busiest block of threads works on, one more for each tile of queries.</summary>
    public int Longest(Question question)
    {
        var costs = question.Costs();
        var loads = new int[question.Blocks];
        var tile = 0;
        for (var line = 0; line < question.Lines; line += Section)
            foreach (var cost in costs)
                for (var i = Math.Min(Section, question.Lines - line); i > 0; i--, tile++)
                {
                    var (round, block) = Math.DivRem(tile, loads.Length);
                    loads[TurnsBack && round % 2 != 0 ? loads.Length - 1 - block : block] += cost;
                }
        return loads.Max();
    }

    private static AttentionSchedule Search(Question question)
    {
        var best = new AttentionSchedule(question.Limit, false);
        if ((long)question.Lines * question.QueryBlocks > (long)MostRounds * question.Blocks)
            return best;
        var (longest, step) = (int.MaxValue, Math.Max(1, question.Limit / Candidates / question.Group) * question.Group);
        for (var section = question.Limit; section > (question.Limit - 1) / 2; section -= step)
            foreach (var turnsBack in new[] { false, true })
            {
                var candidate = new AttentionSchedule(section, turnsBack);
                if (candidate.Longest(question) is var length && length < longest)
                    (longest, best) = (length, candidate);
            }
        return best;
    }

    /// <summary>What the schedule depends on: the call's sizes, the tile's, and the blocks of threads.</summary>
    public readonly record struct Question(
        int QueryTime, int KeyTime, bool IsCausal, int Window, int Lines, int Group, int QueryRows, int KeyRows, int Limit,
        int Blocks)
    {
        public int QueryBlocks => (QueryTime + QueryRows - 1) / QueryRows;

        /// <summary>Of a head's tiles of queries, the last one first: key tiles, and one for all else.</summary>
        public int[] Costs()
        {
            var costs = new int[QueryBlocks];
            var ahead = KeyTime - QueryTime;
            for (var i = 0; i < costs.Length; i++)
            {
                var row = (costs.Length - 1 - i) * QueryRows;
                var first = Window > 0 ? Math.Max(0, row + ahead - Window + 1) : 0;
                var end = IsCausal ? Math.Min(KeyTime, Math.Min(QueryTime, row + QueryRows) + ahead) : KeyTime;
                costs[i] = 1 + (end > first ? ((end - 1) / KeyRows) - (first / KeyRows) + 1 : 0);
            }
            return costs;
        }
    }
}
