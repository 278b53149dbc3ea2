namespace FlaSharp.Kernels.Interop;

/// <summary>CUtensorMapSwizzle.</summary>
internal enum TensorMapSwizzle
{
    None = 0,
    Bytes32 = 1,
    Bytes64 = 2,
    Bytes128 = 3,
}
