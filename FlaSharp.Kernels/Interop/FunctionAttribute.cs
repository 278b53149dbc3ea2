namespace FlaSharp.Kernels.Interop;

/// <summary>CUfunction_attribute, as far as it is used here.</summary>
internal enum FunctionAttribute
{
    LocalSizeBytes = 3,
    RegisterCount = 4,
    MaxDynamicSharedSizeBytes = 8,
}
