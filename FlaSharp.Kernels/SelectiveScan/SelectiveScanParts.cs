namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>What the backward pass leaves of gradients before they are added up.</summary>
/// <param name="A">float32 [S, segments, E, N].</param>
/// <param name="D">float32 [S, segments, E], or 0 if unwanted.</param>
/// <param name="DeltaBias">float32 [S, segments, E], or 0 if unwanted.</param>
/// <param name="Matrices"><see cref="SelectiveScanTile.KeptAs"/> [2, blocks of a group, tokens, G, N]: of B, of C.</param>
internal readonly record struct SelectiveScanParts(nint A, nint D, nint DeltaBias, nint Matrices);
