namespace FlaSharp.Kernels.Norm;

/// <summary>fla::NormMatrix: a matrix with dense rows that begin every <paramref name="Row"/> elements. The default is none.</summary>
internal readonly record struct NormMatrix(nint Data, long Row);
