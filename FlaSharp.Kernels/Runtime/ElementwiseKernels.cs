namespace FlaSharp.Kernels.Runtime;

/// <summary>Kernels that go over dense tensors element by element, 16 bytes of one tensor for a thread: fla/elementwise.cuh.</summary>
internal static class ElementwiseKernels
{
    private const int Threads = 256;
    private const int Alignment = 16;

    /// <summary>A kernel for each element type, in the order of <see cref="ElementTypes.All"/>.</summary>
    /// <param name="path">Its source, without the extension; its name is that of the file.</param>
    public static KernelVariant[] Of(string path) => [.. ElementTypes.All.Select(element =>
        new KernelVariant($"{path}.cu", Path.GetFileName(path),
            [$"ELEMENT={element.Name()}", $"THREADS={Threads}"], Threads, SharedBytes: 0))];

    /// <summary>1 if all addresses are multiples of 16 bytes, else 0.</summary>
    public static int AreAligned(params ReadOnlySpan<nint> addresses)
    {
        nint all = 0;
        foreach (var address in addresses)
            all |= address;
        return all % Alignment == 0 ? 1 : 0;
    }

    /// <summary>Launches that of <paramref name="variants"/> for the element type over <paramref name="count"/> elements.</summary>
    /// <param name="blocksPerMultiprocessor">At most; a thread goes over several pieces then.</param>
    public static void Launch<TParameters>(
        GpuDevice device, KernelVariant[] variants, ElementType element, long count, int blocksPerMultiprocessor,
        in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(device, variants[(int)element]);
        var threads = (count * element.Bytes() + Alignment - 1) / Alignment;
        var blocks = Math.Min((threads + Threads - 1) / Threads, (long)device.Info.MultiprocessorCount * blocksPerMultiprocessor);
        if (blocks > 0)
            kernel.Launch((uint)blocks, 1, 1, LaunchStream.Current, parameters);
    }
}
