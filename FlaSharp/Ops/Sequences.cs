using FlaSharp.Interop;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// Where the sequences of a [B, T, ...] input lie: B rows of T tokens, or, packed, S sequences one after the other in a single row.
/// Flattened to [B * T, ...], sequence s holds the tokens from <c>Start(s)</c> up to, not including, <c>End(s)</c>.
/// </summary>
internal sealed class Sequences
{
    private readonly int[] _offsets; // [S + 1], in tokens of the flattened input

    private Sequences(int[] offsets, bool isPacked)
    {
        _offsets = offsets;
        IsPacked = isPacked;
        for (var s = 0; s < Count; s++)
            MaxLength = Math.Max(MaxLength, Length(s));
    }

    public int Count => _offsets.Length - 1;

    public int Tokens => _offsets[^1];

    public int MaxLength { get; }

    /// <summary>Whether cuSeqlens was given. Otherwise all sequences have the length T.</summary>
    public bool IsPacked { get; }

    public ReadOnlySpan<int> Offsets => _offsets;

    public int Start(int sequence) => _offsets[sequence];

    public int End(int sequence) => _offsets[sequence + 1];

    public int Length(int sequence) => _offsets[sequence + 1] - _offsets[sequence];

    /// <summary>int64 [Tokens], for index_select: the tokens with each sequence turned round. Applied twice it changes nothing.</summary>
    public Tensor ReversedOrder(Device device)
    {
        var order = new long[Tokens];
        for (var s = 0; s < Count; s++)
            for (var i = 0; i < Length(s); i++)
                order[Start(s) + i] = End(s) - 1 - i;
        return tensor(order, device: device);
    }

    /// <summary>int32 [S + 1] on a GPU, or null if the sequences are not packed. Does not wait for the copy.</summary>
    public Tensor? OffsetsOn(Device device) => IsPacked ? KernelTensor.On(device, _offsets) : null;

    /// <summary>Reads and checks the layout.</summary>
    /// <param name="batch">B, which must be 1 if <paramref name="cuSeqlens"/> is given.</param>
    /// <param name="time">T.</param>
    /// <param name="cuSeqlens">int32 or int64 [S + 1], from 0 to T, not decreasing; on the CPU, or it is copied there.</param>
    /// <exception cref="ArgumentException">Anything else.</exception>
    public static Sequences Of(long batch, long time, Tensor? cuSeqlens, string name = "cuSeqlens")
    {
        if (cuSeqlens is null)
        {
            var offsets = new int[batch + 1];
            for (var b = 0; b <= batch; b++)
                offsets[b] = checked((int)(b * time));
            return new Sequences(offsets, isPacked: false);
        }

        if (cuSeqlens.dim() != 1 || cuSeqlens.size(0) < 2 || cuSeqlens.dtype is not (ScalarType.Int32 or ScalarType.Int64))
            throw new ArgumentException(
                $"{name} must be int32 or int64 of shape [S + 1] with S >= 1, but is {cuSeqlens.dtype} of shape [{string.Join(", ", cuSeqlens.shape)}].", name);
        if (batch != 1)
            throw new ArgumentException(
                $"{name} describes sequences packed into one row, so B must be 1, but is {batch}. Reshape the input to [1, B * T, ...].", name);

        using var scope = NewDisposeScope();
        var values = cuSeqlens.to(ScalarType.Int64).cpu().data<long>().ToArray();
        for (var s = 0; s < values.Length; s++)
            if ((s == 0 && values[0] != 0) || (s > 0 && values[s] < values[s - 1]) || (s == values.Length - 1 && values[s] != time))
                throw new ArgumentException(
                    $"{name} must start at 0, never decrease and end at T = {time}, but {name}[{s}] = {values[s]}" +
                    (s > 0 ? $" follows {values[s - 1]}." : "."), name);
        return new Sequences(Array.ConvertAll(values, checked(value => (int)value)), isPacked: true);
    }
}
