namespace FlaSharp.Kernels.Norm;

/// <summary>fla::NormMatrix: dense rows, one every <paramref name="Row"/> elements. The default is none.</summary>
internal readonly record struct NormMatrix(nint Data, long Row);
