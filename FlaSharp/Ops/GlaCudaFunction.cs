using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>What the functions on the CUDA kernels of gated linear attention share. Inputs: q, k, v, g, initial state.</summary>
internal abstract class GlaCudaFunction(Tensor q, Tensor k, Tensor v, double scale, Sequences sequences, bool reverse)
    : FlaFunction
{
    private readonly long _batch = q.Size(0);

    protected GpuDevice Gpu { get; } = GpuDevice.Get(Math.Max(0, q.device_index));

    protected int Time { get; } = checked((int)q.Size(1));

    protected int Heads { get; } = checked((int)q.Size(2));

    protected int KvHeads { get; } = checked((int)k.Size(2));

    protected int KeySize { get; } = checked((int)q.Size(3));

    protected int ValueSize { get; } = checked((int)v.Size(3));

    protected float Scale { get; } = (float)scale;

    protected Sequences Sequences { get; } = sequences;

    /// <param name="offsets"><see cref="Sequences.OffsetsOn"/>.</param>
    protected SequenceLayout Layout(Tensor? offsets) =>
        new(TensorPointer.Of(offsets), Sequences.Count, Sequences.MaxLength, reverse ? 1 : 0);

    /// <summary>Uninitialised [B, T, H, size].</summary>
    protected Tensor PerHead(long size, ScalarType dtype, Device device) =>
        Scratch.Empty([_batch, Time, Heads, size], dtype, device);

    /// <summary>Uninitialised float32 [S, H, K, V].</summary>
    protected Tensor States(Device device) =>
        Scratch.Empty([Sequences.Count, Heads, KeySize, ValueSize], device: device);

    /// <summary>[B, T, H, size] to [B, T, Hkv, size] in a dtype. The sum is made in float32, in a fixed order.</summary>
    protected Tensor SumGroups(Tensor perHead, ScalarType dtype)
    {
        var sum = Heads == KvHeads ? perHead : perHead.unflatten(2, KvHeads, -1).sum(3);
        return sum.InDtype(dtype);
    }
}
