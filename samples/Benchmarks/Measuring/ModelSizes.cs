namespace Benchmarks.Measuring;

/// <summary>The sizes of a user's model.</summary>
internal sealed record ModelSizes(int Hidden, int Heads, int Seq, int Batch)
{
    public override string ToString() => $"width {Hidden}, {Heads} heads, {Batch} x {Seq} tokens";
}
