using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>
/// Gradients that backward returned. Native code copies their handles only after the managed callback has returned, so they must
/// outlive it; the next callback or operation on the same thread proves that the copy was made, and frees them.
/// </summary>
internal static class ParkedGradients
{
    [ThreadStatic] private static Tensor?[]? s_parked;

    public static void Park(Tensor?[] gradients) => s_parked = gradients;

    public static void Release()
    {
        if (s_parked is not { } parked)
            return;
        s_parked = null;
        foreach (var gradient in parked)
            gradient?.Dispose();
    }
}
