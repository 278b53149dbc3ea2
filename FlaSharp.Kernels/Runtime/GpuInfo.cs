namespace FlaSharp.Kernels.Runtime;

/// <summary>What a kernel's launcher, and a reader of reports, needs to know of a GPU.</summary>
internal sealed record GpuInfo
{
    public required string Name { get; init; }

    public required int Major { get; init; }

    public required int Minor { get; init; }

    public required int MultiprocessorCount { get; init; }

    /// <summary>Dynamic shared memory that a block can ask for.</summary>
    public required int MaxSharedBytesPerBlock { get; init; }

    public required int SharedBytesPerMultiprocessor { get; init; }

    public required int L2Bytes { get; init; }

    public required long MemoryBytes { get; init; }

    /// <summary>Of the memory, in kHz; 0 where the driver does not tell.</summary>
    public required int MemoryClockKHz { get; init; }

    public required int MemoryBusBits { get; init; }

    /// <summary>The CUDA version that the driver supports.</summary>
    public required Version DriverVersion { get; init; }

    public override string ToString() =>
        $"{Name}, compute capability {Major}.{Minor}, {MultiprocessorCount} SMs, {MemoryBytes >> 20} MiB";
}
