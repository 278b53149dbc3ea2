using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>Gradients of a selective scan: of y and the final state, which are given, and of all that it read.</summary>
/// <param name="Y">[B, T, 1, E].</param>
/// <param name="FinalState">[S, E, N], or 0 for zeros.</param>
/// <param name="U">[B, T, 1, E].</param>
/// <param name="Delta">[B, T, 1, E].</param>
/// <param name="Z">[B, T, 1, E], or none.</param>
/// <param name="InitialState">[S, E, N], or 0 if unwanted.</param>
/// <param name="A">float32 [E, N].</param>
/// <param name="D">float32 [E], or 0 if unwanted.</param>
/// <param name="DeltaBias">float32 [E], or 0 if unwanted.</param>
/// <param name="B">Dense [B, T, G, N].</param>
/// <param name="C">Dense [B, T, G, N].</param>
internal readonly record struct SelectiveScanGradients(
    TensorView Y, nint FinalState, TensorView U, TensorView Delta, TensorView Z, nint InitialState, nint A, nint D,
    nint DeltaBias, nint B, nint C);
