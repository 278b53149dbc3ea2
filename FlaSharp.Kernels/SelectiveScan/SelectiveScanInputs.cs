using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>What a selective scan reads. Vectors and A are dense float32.</summary>
/// <param name="U">[B, T, 1, E].</param>
/// <param name="Delta">[B, T, 1, E].</param>
/// <param name="Z">[B, T, 1, E], or none.</param>
/// <param name="B">[B, T, G, N].</param>
/// <param name="C">[B, T, G, N].</param>
/// <param name="A">[E, N]: A, or log(-A).</param>
/// <param name="D">[E], or 0.</param>
/// <param name="DeltaBias">[E], or 0.</param>
internal readonly record struct SelectiveScanInputs(
    TensorView U, TensorView Delta, TensorView Z, TensorView B, TensorView C, nint A, nint D, nint DeltaBias);
