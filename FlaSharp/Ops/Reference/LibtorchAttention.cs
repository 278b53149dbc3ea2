using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops.Reference;

/// <summary>Attention by libtorch's fused scaled_dot_product_attention, on views of the inputs.</summary>
internal static class LibtorchAttention
{
    /// <summary>Why it does not take a call; null if it does.</summary>
    /// <remarks>
    /// Its causal mask is aligned to the top left, so it fits where both alignments agree; a lone last query sees all keys.
    /// </remarks>
    public static string? Unfit(AttentionSequences sequences, AttentionOptions options)
    {
        var option = options switch
        {
            { Window: not null } => "window",
            { Softcap: not null } => "softcap",
            { Dropout: > 0 } => "dropout",
            { HasSinks: true } => "sinks",
            { HasAlibiSlopes: true } => "ALiBi slopes",
            { ReturnsLogSumExp: true } => "logarithms of the sums",
            _ => null,
        };
        if (option is not null)
            return $"libtorch's kernel has no {option}.";
        foreach (var segment in sequences.Segments)
            if (segment.Queries > 0 && segment.Keys == 0)
                return "libtorch's kernel takes no queries without keys.";
            else if (options.Causal && segment.Queries > 1 && segment.Queries != segment.Keys)
                return $"libtorch's causal mask takes as many queries as keys, not {segment.Queries} and {segment.Keys}.";
        return null;
    }

    public static Tensor Run(Tensor q, Tensor k, Tensor v, AttentionSegment[] segments, bool causal, double scale)
    {
        using var scope = NewDisposeScope();
        var (keySize, valueSize) = (k.size(3), v.size(3));
        if (keySize != valueSize) // its fused kernel has one head size; zeros change no product
        {
            var size = Math.Max(keySize, valueSize);
            (q, k, v) = (Padded(q, size), Padded(k, size), Padded(v, size));
        }
        var factor = scale * Math.Sqrt(q.size(3)); // its own scale is (head size)^-0.5
        if (Math.Abs(factor - 1) > 1e-12)
            q = q * factor;

        Tensor output;
        if (segments.Length == 1)
            output = Grouped(q, k, v, causal && segments[0].Queries > 1);
        else
        {
            // split, not slices: its backward is one concatenation
            var queries = q.split([.. segments.Select(segment => (long)segment.Queries)], 1);
            long[] lengths = [.. segments.Select(segment => (long)segment.Keys)];
            var (keys, values) = (k.split(lengths, 1), v.split(lengths, 1));
            output = cat([.. segments.Index().Where(s => s.Item.Queries > 0).Select(s =>
                Grouped(queries[s.Index], keys[s.Index], values[s.Index], causal && s.Item.Queries > 1))], 1);
        }
        if (output.size(3) != valueSize)
            output = output.narrow(3, 0, valueSize).contiguous();
        return output.MoveToOuterDisposeScope();
    }

    /// <summary>One call for each member of the groups of query heads: k and v are not repeated.</summary>
    private static Tensor Grouped(Tensor q, Tensor k, Tensor v, bool causal)
    {
        var (heads, groups) = (q.size(2), k.size(2));
        if (heads == groups)
            return HeadsFirst(q, k, v, causal);
        var members = q.unflatten(2, groups, heads / groups).unbind(3);
        return stack([.. members.Select(member => HeadsFirst(member, k, v, causal))], 3).flatten(2, 3);
    }

    private static Tensor HeadsFirst(Tensor q, Tensor k, Tensor v, bool causal) =>
        nn.functional.scaled_dot_product_attention(View(q), View(k), View(v), is_casual: causal).transpose(1, 2);

    /// <summary>[B, T, H, K] as [B, H, T, K]; the fused kernel takes any strides, if features are adjacent.</summary>
    private static Tensor View(Tensor tensor) =>
        (tensor.stride(3) == 1 ? tensor : tensor.contiguous()).transpose(1, 2);

    private static Tensor Padded(Tensor tensor, long size) =>
        tensor.size(3) == size ? tensor : nn.functional.pad(tensor, [0, size - tensor.size(3)]);
}
