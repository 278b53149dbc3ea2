namespace FlaSharp.Kernels.Runtime;

/// <summary>The result of a compilation.</summary>
/// <param name="Image">A cubin, or PTX with a zero at its end.</param>
/// <param name="Log">All that the compiler printed.</param>
internal sealed record CompiledKernel(byte[] Image, string Log);
