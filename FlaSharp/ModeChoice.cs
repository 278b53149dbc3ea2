namespace FlaSharp;

/// <summary>How an operation will run, and why: the answer to what <see cref="LinearAttentionMode.Auto"/> takes.</summary>
/// <param name="Mode">The mode, never <see cref="LinearAttentionMode.Auto"/>.</param>
/// <param name="Path">What computes it: "cpu-simd", a kernel of this library, or "torch", TorchSharp operations.</param>
/// <param name="Reason">A sentence for people.</param>
public sealed record ModeChoice(LinearAttentionMode Mode, string Path, string Reason);
