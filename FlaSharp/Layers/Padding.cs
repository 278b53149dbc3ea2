using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Takes padding out of a batch and puts it back: B rows with N tokens in all become one packed row [1, N, ...] whose bounds are
/// <see cref="CuSeqlens"/>. A model does so once around all its layers. Lives in the dispose scope in which it was made.
/// </summary>
internal sealed class Padding
{
    private readonly Tensor _indices; // int64 [N], places of the tokens in the flattened [B * T]
    private readonly long _batch;
    private readonly long _time;

    private Padding(Tensor indices, Tensor cuSeqlens, long batch, long time)
    {
        (_indices, CuSeqlens, _batch, _time) = (indices, cuSeqlens, batch, time);
        TokenCount = indices.size(0);
    }

    /// <summary>N. Zero if there is nothing but padding, and then nothing to pack.</summary>
    public long TokenCount { get; }

    /// <summary>int64 [B + 1] on the CPU, where the operations read it.</summary>
    public Tensor CuSeqlens { get; }

    /// <summary>Reads the mask; null if it has no padding, so that x can be used as it is.</summary>
    /// <param name="attentionMask">[B, T] of 0 and 1.</param>
    /// <param name="x">[B, T, ...], what is to be packed: gives sizes and device.</param>
    /// <exception cref="ArgumentException">Another shape, or other values.</exception>
    public static Padding? From(Tensor attentionMask, Tensor x)
    {
        var (batch, time) = (x.size(0), x.size(1));
        Guard.Shape(attentionMask, "[B, T]", [batch, time]);

        float[] values;
        using (NewDisposeScope())
            values = attentionMask.detach().to(ScalarType.Float32).cpu().contiguous().data<float>().ToArray();
        var indices = new List<long>(values.Length);
        var bounds = new long[batch + 1];
        for (var i = 0; i < values.Length; i++)
        {
            if (values[i] == 1)
                indices.Add(i);
            else if (values[i] != 0)
                throw new ArgumentException(
                    $"attentionMask must hold 1 at tokens and 0 at padding, but holds {values[i]}. Masks of pairs or " +
                    "added scores are not supported.", nameof(attentionMask));
            bounds[(i / time) + 1] = indices.Count;
        }
        return indices.Count == values.Length
            ? null
            : new Padding(tensor(indices, device: x.device), tensor(bounds), batch, time);
    }

    /// <summary>[B, T, ...] to [1, N, ...]. Differentiable; the gradient is 0 at padding.</summary>
    public Tensor Pack(Tensor x)
    {
        using var scope = NewDisposeScope();
        return x.flatten(0, 1).index_select(0, _indices).unsqueeze(0).MoveToOuterDisposeScope();
    }

    /// <summary>[1, N, ...] to [B, T, ...] with zeros at padding. Differentiable.</summary>
    public Tensor Unpack(Tensor packed)
    {
        using var scope = NewDisposeScope();
        var tokens = packed.squeeze(0);
        long[] inner = tokens.shape[1..];
        return tokens.new_zeros([_batch * _time, .. inner]).index_copy(0, _indices, tokens)
            .reshape([_batch, _time, .. inner]).MoveToOuterDisposeScope();
    }
}
