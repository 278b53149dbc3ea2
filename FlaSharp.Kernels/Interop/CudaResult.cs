namespace FlaSharp.Kernels.Interop;

/// <summary>CUresult, as far as it is told apart here; <see cref="CudaDriver.cuGetErrorName"/> names them all.</summary>
internal enum CudaResult
{
    Success = 0,
    InvalidImage = 200,
    NoBinaryForGpu = 209,
    UnsupportedPtxVersion = 222,
}
