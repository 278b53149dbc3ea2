namespace FlaSharp.Ops;

/// <summary>
/// Queries and the keys they may see, adjacent in time: a packed sequence, or everything (in each row of the batch).
/// </summary>
internal readonly record struct AttentionSegment(int QueryStart, int Queries, int KeyStart, int Keys);
