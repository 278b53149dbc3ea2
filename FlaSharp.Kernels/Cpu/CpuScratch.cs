using System.Runtime.CompilerServices;

namespace FlaSharp.Kernels.Cpu;

/// <summary>
/// Working memory of a kernel, one piece per thread and kept for the next call: an allocation costs more than a short kernel.
/// </summary>
internal static unsafe class CpuScratch
{
    private const int AlignmentBytes = 64;

    [ThreadStatic] private static float[]? s_memory;

    /// <summary>Whether the memory is filled with NaN, so that reading what was not written is seen. For tests.</summary>
    public static bool IsPoisoned { get; set; }

    /// <summary>
    /// Memory aligned to a vector, with whatever was left in it. Valid until this thread calls again: a kernel takes all it needs
    /// in one call.
    /// </summary>
    public static float* Take(int floats)
    {
        const int spare = AlignmentBytes / sizeof(float);
        if (s_memory is null || s_memory.Length < floats + spare)
            s_memory = GC.AllocateUninitializedArray<float>(floats + spare, pinned: true);
        var address = (nint)Unsafe.AsPointer(ref s_memory[0]);
        var memory = (float*)((address + AlignmentBytes - 1) & -AlignmentBytes);
        if (IsPoisoned)
            new Span<float>(memory, floats).Fill(float.NaN);
        return memory;
    }
}
