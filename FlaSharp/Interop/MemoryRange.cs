using static TorchSharp.torch;

namespace FlaSharp.Interop;

/// <summary>The bytes from a tensor's first element to its last.</summary>
/// <param name="Start">The first byte.</param>
/// <param name="End">The byte after the last one.</param>
internal readonly record struct MemoryRange(nint Start, nint End)
{
    /// <summary>Of a tensor that the caller keeps alive.</summary>
    public static MemoryRange Of(Tensor tensor)
    {
        var elements = 1L;
        for (var i = tensor.Rank() - 1; i >= 0; i--)
        {
            if (tensor.Size(i) == 0)
                return default;
            elements += (tensor.Size(i) - 1) * tensor.Stride(i);
        }
        var start = TensorPointer.Of(tensor);
        return new MemoryRange(start, start + (nint)(elements * tensor.element_size()));
    }

    /// <summary>Whether a write to one may change the other. Interleaved tensors count as such.</summary>
    public bool Overlaps(MemoryRange other) => Start < other.End && other.Start < End;
}
