namespace FlaSharp.Kernels.Interop;

/// <summary>CUdevice_attribute, as far as it is asked for here.</summary>
internal enum DeviceAttribute
{
    MultiprocessorCount = 16,
    MemoryClockRate = 36,
    GlobalMemoryBusWidth = 37,
    L2CacheSize = 38,
    ComputeCapabilityMajor = 75,
    ComputeCapabilityMinor = 76,
    MaxSharedMemoryPerMultiprocessor = 81,
    MaxSharedMemoryPerBlockOptin = 97,
}
