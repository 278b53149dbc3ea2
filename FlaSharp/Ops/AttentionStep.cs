using FlaSharp.Interop;
using FlaSharp.Kernels.Attention;
using FlaSharp.Kernels.Rotary;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>
/// A decoding step on a GPU: appends a few tokens to each row of a cache of keys and values, and attends from them. Nothing waits
/// for the GPU, and no gradient is recorded.
/// </summary>
internal sealed record AttentionStep
{
    /// <summary>Of a row. With more of them, a kernel that shares the keys among blocks of queries is faster.</summary>
    public const int MaxTokens = 16;

    /// <summary>The tokens of each row of the cache.</summary>
    public required Sequences Sequences { get; init; }

    /// <summary>Null for all tokens up to the query's own.</summary>
    public required int? Window { get; init; }

    /// <summary>The base of the rotary positions; null for none.</summary>
    public required double? Theta { get; init; }

    /// <summary>Whether the kernels take it. Where they should and cannot, says so once.</summary>
    /// <param name="sequences">The tokens of each row.</param>
    /// <param name="q">[B, T, H, K], or packed.</param>
    /// <param name="v">[B, T, Hkv, V], or packed.</param>
    public static bool IsPossible(Sequences sequences, Tensor q, Tensor v)
    {
        if (sequences.MaxLength > MaxTokens || q.dtype is not (ScalarType.BFloat16 or ScalarType.Float16))
            return false;
        var (keySize, valueSize) = (q.Size(3), v.Size(3));
        var most = keySize % AttentionDecodeTile.Vector == 0 && valueSize % AttentionDecodeTile.Vector == 0
            ? AttentionDecodeTile.MaxSize
            : AttentionDecodeTile.MaxUnalignedKeySize;
        return CudaOperation.HasKernel(nameof(FlaOps.Attention), q, keySize <= most && valueSize <= AttentionDecodeTile.MaxSize
            ? null
            : $"K = {keySize} and V = {valueSize}, and the kernel takes up to {most} and {AttentionDecodeTile.MaxSize}.");
    }

    /// <summary>Writes the tokens to the cache and returns what they see of it, [B, T, H, V] or packed.</summary>
    /// <param name="q">[B, T, H, K], or packed; not turned yet.</param>
    /// <param name="k">[B, T, Hkv, K], or packed; not turned yet.</param>
    /// <param name="v">[B, T, Hkv, V], or packed.</param>
    /// <param name="keys">[B, capacity, Hkv, K]: row b's token i lies at place i % capacity.</param>
    /// <param name="values">[B, capacity, Hkv, V].</param>
    /// <param name="lengths">int32 [B]: the tokens of each row before the step.</param>
    /// <param name="bases">int32 [B], the position of each row's token 0, or null for 0.</param>
    /// <param name="newLengths">int32 [B]: gets the tokens of each row after the step.</param>
    /// <param name="newLengthsOnCpu">The same.</param>
    public Tensor Run(Tensor q, Tensor k, Tensor v, Tensor keys, Tensor values, Tensor lengths, Tensor? bases, Tensor newLengths,
        IReadOnlyList<int> newLengthsOnCpu)
    {
        using var scope = NewDisposeScope();
        (q, k, v) = (q.DenseRows(), k.DenseRows(), v.DenseRows());
        var offsets = Sequences.OffsetsOn(q.device);
        var problem = new AttentionProblem
        {
            Device = GpuDevice.Get(Math.Max(0, q.device_index)),
            Element = q.dtype.Element()!.Value,
            Queries = new SequenceLayout(TensorPointer.Of(offsets), Sequences.Count, Sequences.MaxLength, IsReversed: 0),
            Keys = new SequenceLayout(0, Sequences.Count, newLengthsOnCpu.Max(), IsReversed: 0),
            QueryTime = checked((int)q.Size(1)),
            KeyTime = checked((int)keys.Size(1)),
            Heads = checked((int)q.Size(2)),
            KvHeads = checked((int)k.Size(2)),
            KeySize = checked((int)q.Size(3)),
            ValueSize = checked((int)v.Size(3)),
            IsCausal = true,
            Window = Window ?? 0,
            Scale = (float)(1 / Math.Sqrt(q.Size(3))),
        };
        var capacity = checked((int)keys.Size(1));
        var turned = Theta is null ? q : Scratch.Dense(q, q.dtype);
        new AttentionAppendKernels(problem)
        {
            Capacity = capacity,
            Turns = Theta is { } theta ? RotaryTurns.Of(theta, problem.KeySize) : default,
            Lengths = TensorPointer.Of(lengths),
            Bases = TensorPointer.Of(bases),
        }.Append(Theta is null ? default : q.View(), Theta is null ? default : turned.View(), k.View(), v.View(), keys.View(),
            values.View(), TensorPointer.Of(newLengths));

        var output = Scratch.Empty([q.Size(0), q.Size(1), q.Size(2), v.Size(3)], q.dtype, q.device);
        Tensor? parts = null;
        new AttentionDecodeKernels(problem)
        {
            Capacity = capacity,
            Lengths = newLengthsOnCpu,
            LengthsOnDevice = TensorPointer.Of(newLengths),
        }.Attend(turned.View(), keys.View(), values.View(), output.View(),
            count => TensorPointer.Of(parts = Scratch.Empty([count], device: q.device)));
        GC.KeepAlive((q, k, v, turned, offsets, parts, output));
        GC.KeepAlive((keys, values, lengths, bases, newLengths));
        return output.MoveToOuterDisposeScope();
    }
}
