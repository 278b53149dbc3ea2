namespace FlaSharp.Kernels.Rotary;

/// <summary>The positions of tokens [B, T] on a GPU.</summary>
/// <param name="Data">int32 or int64; 0 where token t is at <paramref name="Offset"/> + t.</param>
/// <param name="BatchStep">Elements from a row to the next; 0 if all have the same positions.</param>
/// <param name="TimeStep">Elements from a token to the next.</param>
/// <param name="Offset">Without data, the position of the first token.</param>
/// <param name="IsLong">Whether they are int64.</param>
internal readonly record struct RotaryPositions(nint Data, long BatchStep, long TimeStep, long Offset, bool IsLong);
