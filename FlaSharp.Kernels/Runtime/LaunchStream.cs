namespace FlaSharp.Kernels.Runtime;

/// <summary>The stream that kernels are launched on.</summary>
internal static class LaunchStream
{
    /// <summary>The legacy default stream: TorchSharp puts all its work there, and offers no other.</summary>
    public static nint Current => 0;
}
