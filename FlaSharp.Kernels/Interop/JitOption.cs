namespace FlaSharp.Kernels.Interop;

/// <summary>CUjit_option, as far as it is used here.</summary>
internal enum JitOption
{
    ErrorLogBuffer = 5,
    ErrorLogBufferSizeBytes = 6,
}
