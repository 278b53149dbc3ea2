namespace LanguageModel.Data;

internal static class Entropy
{
    /// <summary>
    /// Nats per symbol of a model that knows only how frequent each symbol is: what a language model has to beat.
    /// </summary>
    public static double OrderZero(ReadOnlySpan<byte> symbols)
    {
        Span<long> counts = stackalloc long[256];
        counts.Clear();
        foreach (byte symbol in symbols)
            counts[symbol]++;

        double entropy = 0;
        foreach (long count in counts)
        {
            if (count > 0)
                entropy -= count * Math.Log((double)count / symbols.Length);
        }

        return symbols.IsEmpty ? 0 : entropy / symbols.Length;
    }
}
