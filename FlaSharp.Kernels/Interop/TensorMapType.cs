namespace FlaSharp.Kernels.Interop;

/// <summary>CUtensorMapDataType, as far as it is used here.</summary>
internal enum TensorMapType
{
    Float16 = 6,
    Float32 = 7,
    BFloat16 = 9,
}
