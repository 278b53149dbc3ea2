using FlaSharp.Interop;
using FlaSharp.Ops;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>
/// Keys and values of the tokens seen, [B, capacity, Hkv, K]: row b's token i lies at place i % capacity, counted from the row's
/// base, so rows may differ in length. Appending writes into free places, and the capacity grows by a factor, so a token costs no
/// copy of the others. With a window, <see cref="Step"/> goes round and writes over what no token sees any more.
/// </summary>
internal sealed class KeyValueCache(long rows, int? window) : IDisposable
{
    private readonly int[] _lengths = new int[rows]; // tokens since the base; those that are seen of them are there
    private readonly int[] _bases = new int[rows];   // tokens before
    private readonly long _reach = window is null ? long.MaxValue : window.Value - 1; // keys before a token that it sees
    private Tensor? _keys;
    private Tensor? _values;
    private DeviceCopy? _onDevice; // null if it is not up to date

    public bool IsEmpty => _lengths.All(length => length == 0);

    /// <summary>Whether all rows hold as many tokens, so that <see cref="All"/> may be used.</summary>
    public bool IsRectangular => _lengths.All(length => length == _lengths[0]);

    /// <summary>Adds tokens. Unless it goes round, those of a row lie in its first places afterwards.</summary>
    /// <param name="keys">[B, T, Hkv, K], or [1, N, Hkv, K] if <paramref name="sequences"/> are packed.</param>
    /// <param name="values">Likewise.</param>
    /// <param name="sequences">Which tokens belong to which row.</param>
    /// <param name="areRead">Whether queries of the same tokens read them; otherwise only what later ones need is kept.</param>
    /// <param name="goesRound">Whether to write over what no token sees any more, as <see cref="Step"/> does.</param>
    public void Append(Tensor keys, Tensor values, Sequences sequences, bool areRead, bool goesRound = false)
    {
        var added = Added(sequences, areRead ? long.MaxValue : _reach);
        // What the graph has saved must not be written to, so a recorded pass gets a buffer of its own.
        var isRecorded = is_grad_enabled() && (keys.requires_grad || values.requires_grad || _keys is { requires_grad: true });
        MakeRoom(keys, values, added, isRecorded, goesRound);
        using var scope = NewDisposeScope();
        Write(_keys!, keys, sequences, added);
        Write(_values!, values, sequences, added);
        for (var b = 0; b < rows; b++)
        {
            _bases[b] += sequences.Length(b) - added[b];
            _lengths[b] += added[b];
        }
        DropDeviceCopy();
    }

    /// <summary>Whether <see cref="Step"/> can take such tokens.</summary>
    /// <param name="sequences">Which tokens belong to which row.</param>
    /// <param name="q">[B, T, H, K], or packed.</param>
    /// <param name="k">[B, T, Hkv, K], or packed.</param>
    /// <param name="v">[B, T, Hkv, V], or packed.</param>
    public bool CanStep(Sequences sequences, Tensor q, Tensor k, Tensor v)
    {
        var isRecorded = is_grad_enabled() && (q.requires_grad || k.requires_grad || v.requires_grad || _keys!.requires_grad);
        return !isRecorded && q.device_type == DeviceType.CUDA && _keys!.dtype == q.dtype
            && AttentionStep.IsPossible(sequences, q, v);
    }

    /// <summary>Adds a few tokens on a GPU, at their rotary positions; returns what they see, [B, T, H, V] or packed.</summary>
    /// <param name="q">[B, T, H, K], or packed.</param>
    /// <param name="k">[B, T, Hkv, K], or packed.</param>
    /// <param name="v">[B, T, Hkv, V], or packed.</param>
    /// <param name="sequences">Which tokens belong to which row.</param>
    /// <param name="theta">The base of the rotary positions, which q and k do not have yet; null for none.</param>
    public Tensor Step(Tensor q, Tensor k, Tensor v, Sequences sequences, double? theta)
    {
        MakeRoom(k, v, Added(sequences, long.MaxValue), isRecorded: false, goesRound: true);
        _onDevice ??= new DeviceCopy(q.device, _lengths, _bases);
        for (var b = 0; b < rows; b++)
            _lengths[b] += sequences.Length(b);
        var output = new AttentionStep { Sequences = sequences, Window = window, Theta = theta }.Run(
            q, k, v, _keys!, _values!, _onDevice.Lengths, _onDevice.Bases, _onDevice.NextLengths, _lengths);
        _onDevice.Advance();
        return output;
    }

    /// <summary>Keys and values of all rows, [B, stored, Hkv, K]: views.</summary>
    public (Tensor keys, Tensor values) All() => (_keys!.narrow(1, 0, _lengths[0]), _values!.narrow(1, 0, _lengths[0]));

    /// <summary>Keys and values of one row, [1, stored, Hkv, K]: views.</summary>
    public (Tensor keys, Tensor values) Row(int row) =>
        (_keys!.narrow(0, row, 1).narrow(1, 0, _lengths[row]), _values!.narrow(0, row, 1).narrow(1, 0, _lengths[row]));

    public void Detach() => Replace(_keys?.detach(), _values?.detach());

    public KeyValueCache Clone()
    {
        using var scope = NewDisposeScope();
        var copy = new KeyValueCache(rows, window);
        _lengths.CopyTo(copy._lengths, 0);
        _bases.CopyTo(copy._bases, 0);
        copy.Replace(_keys?.detach().clone(), _values?.detach().clone());
        return copy;
    }

    public void Dispose()
    {
        Replace(null, null);
        DropDeviceCopy();
    }

    /// <summary>The last tokens of each sequence, at most so many.</summary>
    private int[] Added(Sequences sequences, long most)
    {
        var added = new int[rows];
        for (var b = 0; b < rows; b++)
            added[b] = (int)Math.Min(sequences.Length(b), most);
        return added;
    }

    private void MakeRoom(Tensor keys, Tensor values, int[] added, bool isRecorded, bool goesRound)
    {
        // Going round would find room in a buffer that a graph has saved, which is full otherwise.
        goesRound &= _keys is { requires_grad: false };
        var hasRoom = _keys is not null && !isRecorded;
        for (var b = 0; b < rows; b++)
            hasRoom = hasRoom && (goesRound ? Math.Min(_lengths[b], _reach) : _lengths[b]) + added[b] <= _keys!.size(1);
        if (!hasRoom)
            Grow(keys, values, added, isRecorded);
    }

    /// <summary>Moves to new buffers, taking along what later tokens can see, to the first places.</summary>
    private void Grow(Tensor keys, Tensor values, int[] added, bool isRecorded)
    {
        using var scope = NewDisposeScope();
        var kept = Array.ConvertAll(_lengths, length => (int)Math.Min(length, _reach));
        var needed = 0L;
        for (var b = 0; b < rows; b++)
            needed = Math.Max(needed, (long)kept[b] + added[b]);
        var capacity = isRecorded ? needed : needed + Math.Max(needed / 2, 64);

        var newKeys = Scratch.Empty([rows, capacity, keys.size(2), keys.size(3)], keys.dtype, keys.device);
        var newValues = Scratch.Empty([rows, capacity, values.size(2), values.size(3)], values.dtype, values.device);
        for (var b = 0; b < rows; b++)
        {
            var to = 0L;
            foreach (var (place, count) in Places(_lengths[b] - kept[b], kept[b]))
            {
                newKeys.narrow(0, b, 1).narrow(1, to, count).copy_(_keys!.narrow(0, b, 1).narrow(1, place, count));
                newValues.narrow(0, b, 1).narrow(1, to, count).copy_(_values!.narrow(0, b, 1).narrow(1, place, count));
                to += count;
            }
        }
        Replace(newKeys, newValues);
        for (var b = 0; b < rows; b++)
            _bases[b] += _lengths[b] - kept[b];
        kept.CopyTo(_lengths, 0);
        DropDeviceCopy();
    }

    /// <summary>Writes the last added[b] tokens of each row behind those stored.</summary>
    private void Write(Tensor buffer, Tensor tokens, Sequences sequences, int[] added)
    {
        if (!sequences.IsPacked && IsRectangular)
        {
            var from = tokens.size(1) - added[0];
            foreach (var (place, count) in Places(_lengths[0], added[0]))
            {
                buffer.narrow(1, place, count).copy_(tokens.narrow(1, from, count));
                from += count;
            }
            return;
        }
        for (var b = 0; b < rows; b++)
        {
            var row = sequences.IsPacked ? tokens : tokens.narrow(0, b, 1);
            var from = (sequences.IsPacked ? sequences.End(b) : tokens.size(1)) - added[b];
            foreach (var (place, count) in Places(_lengths[b], added[b]))
            {
                buffer.narrow(0, b, 1).narrow(1, place, count).copy_(row.narrow(1, from, count));
                from += count;
            }
        }
    }

    /// <summary>Where consecutive tokens of a row lie: at most two pieces, the second from place 0 on.</summary>
    private IEnumerable<(long place, long count)> Places(long first, long count)
    {
        if (count == 0)
            yield break;
        var capacity = _keys!.size(1);
        var place = first % capacity;
        var straight = Math.Min(count, capacity - place);
        yield return (place, straight);
        if (count > straight)
            yield return (0, count - straight);
    }

    private void Replace(Tensor? keys, Tensor? values)
    {
        _keys?.Dispose();
        _values?.Dispose();
        (_keys, _values) = (keys?.DetachFromDisposeScope(), values?.DetachFromDisposeScope());
    }

    private void DropDeviceCopy()
    {
        _onDevice?.Dispose();
        _onDevice = null;
    }

    /// <summary>Lengths and bases on a GPU, int32 [B]; the lengths after a step are written there.</summary>
    private sealed class DeviceCopy(Device device, int[] lengths, int[] bases) : IDisposable
    {
        public Tensor Lengths { get; private set; } = KernelTensor.On(device, lengths).DetachFromDisposeScope();

        public Tensor NextLengths { get; private set; } =
            Scratch.Empty([lengths.Length], ScalarType.Int32, device).DetachFromDisposeScope();

        /// <summary>Null if all are 0.</summary>
        public Tensor? Bases { get; } = Array.TrueForAll(bases, first => first == 0)
            ? null
            : KernelTensor.On(device, bases).DetachFromDisposeScope();

        public void Advance() => (Lengths, NextLengths) = (NextLengths, Lengths);

        public void Dispose()
        {
            Lengths.Dispose();
            NextLengths.Dispose();
            Bases?.Dispose();
        }
    }
}
