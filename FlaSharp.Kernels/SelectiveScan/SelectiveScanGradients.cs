using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>Gradients of a selective scan: of y and the final state, which are given, and of all that it read.</summary>
/// <param name="Y">[B, T, 1, E].</param>
/// <param name="FinalState">[S, E, N], or 0 for zeros.</param>
/// <param name="U">[B, T, 1, E].</param>
/// <param name="Delta">[B, T, 1, E].</param>
/// <param name="Z">[B, T, 1, E], or none.</param>
/// <param name="InitialState">[S, E, N], or 0 if unwanted.</param>
/// <param name="A">Parts float32 [S, segments, E, N].</param>
/// <param name="D">Parts float32 [S, segments, E], or 0 if unwanted.</param>
/// <param name="DeltaBias">Parts float32 [S, segments, E], or 0 if unwanted.</param>
/// <param name="B">Parts float32 [blocks of a group, tokens, G, N].</param>
/// <param name="C">Parts float32 [blocks of a group, tokens, G, N].</param>
internal readonly record struct SelectiveScanGradients(
    TensorView Y, nint FinalState, TensorView U, TensorView Delta, TensorView Z, nint InitialState, nint A, nint D,
    nint DeltaBias, nint B, nint C);
