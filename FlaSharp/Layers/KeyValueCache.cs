using FlaSharp.Interop;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Keys and values of the tokens seen, [B, capacity, Hkv, K]: row b holds its own in the first places, so rows may differ in
/// length. Appending writes into free places, and the capacity grows by a factor, so a token costs no copy of the others.
/// </summary>
internal sealed class KeyValueCache(long rows, int? window) : IDisposable
{
    private readonly long[] _stored = new long[rows];
    private Tensor? _keys;
    private Tensor? _values;

    public bool IsEmpty => _stored.All(count => count == 0);

    /// <summary>Whether all rows hold as many tokens, so that <see cref="All"/> may be used.</summary>
    public bool IsRectangular => _stored.All(count => count == _stored[0]);

    /// <summary>Adds tokens.</summary>
    /// <param name="keys">[B, T, Hkv, K], or [1, N, Hkv, K] if <paramref name="sequences"/> are packed.</param>
    /// <param name="values">Likewise.</param>
    /// <param name="sequences">Which tokens belong to which row.</param>
    /// <param name="areRead">Whether queries of the same tokens read them; otherwise only what later ones need is kept.</param>
    public void Append(Tensor keys, Tensor values, Sequences sequences, bool areRead)
    {
        var reach = window is null ? long.MaxValue : window.Value - 1; // keys before a token that it sees
        var added = new long[rows];
        for (var b = 0; b < rows; b++)
            added[b] = areRead ? sequences.Length(b) : Math.Min(sequences.Length(b), reach);

        // What the graph has saved must not be written to, so a recorded pass gets a buffer of its own.
        var isRecorded = is_grad_enabled() && (keys.requires_grad || values.requires_grad || _keys is { requires_grad: true });
        if (isRecorded || _keys is null || Enumerable.Range(0, (int)rows).Any(b => _stored[b] + added[b] > _keys.size(1)))
            Grow(keys, values, added, reach, isRecorded);

        using var scope = NewDisposeScope();
        Write(_keys!, keys, sequences, added);
        Write(_values!, values, sequences, added);
        for (var b = 0; b < rows; b++)
            _stored[b] += added[b];
    }

    /// <summary>Keys and values of all rows, [B, stored, Hkv, K]: views.</summary>
    public (Tensor keys, Tensor values) All() => (_keys!.narrow(1, 0, _stored[0]), _values!.narrow(1, 0, _stored[0]));

    /// <summary>Keys and values of one row, [1, stored, Hkv, K]: views.</summary>
    public (Tensor keys, Tensor values) Row(int row) =>
        (_keys!.narrow(0, row, 1).narrow(1, 0, _stored[row]), _values!.narrow(0, row, 1).narrow(1, 0, _stored[row]));

    public void Detach() => Replace(_keys?.detach(), _values?.detach());

    public KeyValueCache Clone()
    {
        using var scope = NewDisposeScope();
        var copy = new KeyValueCache(rows, window);
        _stored.CopyTo(copy._stored, 0);
        copy.Replace(_keys?.detach().clone(), _values?.detach().clone());
        return copy;
    }

    public void Dispose() => Replace(null, null);

    /// <summary>Moves to new buffers, taking along what later tokens can see.</summary>
    private void Grow(Tensor keys, Tensor values, long[] added, long reach, bool isRecorded)
    {
        using var scope = NewDisposeScope();
        var kept = Array.ConvertAll(_stored, count => Math.Min(count, reach));
        var needed = 0L;
        for (var b = 0; b < rows; b++)
            needed = Math.Max(needed, kept[b] + added[b]);
        var capacity = isRecorded ? needed : needed + Math.Max(needed / 2, 64);

        var newKeys = Scratch.Empty([rows, capacity, keys.size(2), keys.size(3)], keys.dtype, keys.device);
        var newValues = Scratch.Empty([rows, capacity, values.size(2), values.size(3)], values.dtype, values.device);
        for (var b = 0; b < rows; b++)
        {
            if (kept[b] == 0)
                continue;
            newKeys.narrow(0, b, 1).narrow(1, 0, kept[b]).copy_(_keys!.narrow(0, b, 1).narrow(1, _stored[b] - kept[b], kept[b]));
            newValues.narrow(0, b, 1).narrow(1, 0, kept[b]).copy_(
                _values!.narrow(0, b, 1).narrow(1, _stored[b] - kept[b], kept[b]));
        }
        Replace(newKeys, newValues);
        kept.CopyTo(_stored, 0);
    }

    /// <summary>Writes the last added[b] tokens of each row behind those stored.</summary>
    private void Write(Tensor buffer, Tensor tokens, Sequences sequences, long[] added)
    {
        if (!sequences.IsPacked && IsRectangular)
        {
            if (added[0] > 0)
                buffer.narrow(1, _stored[0], added[0]).copy_(tokens.narrow(1, tokens.size(1) - added[0], added[0]));
            return;
        }
        for (var b = 0; b < rows; b++)
        {
            if (added[b] == 0)
                continue;
            var source = sequences.IsPacked
                ? tokens.narrow(1, sequences.End(b) - added[b], added[b])
                : tokens.narrow(0, b, 1).narrow(1, tokens.size(1) - added[b], added[b]);
            buffer.narrow(0, b, 1).narrow(1, _stored[b], added[b]).copy_(source);
        }
    }

    private void Replace(Tensor? keys, Tensor? values)
    {
        _keys?.Dispose();
        _values?.Dispose();
        (_keys, _values) = (keys?.DetachFromDisposeScope(), values?.DetachFromDisposeScope());
    }
}
