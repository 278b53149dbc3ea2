using TorchSharp;

namespace FlaSharp.Interop;

/// <summary>
/// Scalars that a native call cannot lose: TorchSharp keeps none alive while it runs, not even the hidden factor 1 of a + b, and a
/// collection in just that moment frees what native code still reads.
/// </summary>
internal static class HeldScalar
{
    public static readonly Scalar One = 1;
}
