using static TorchSharp.torch;

namespace FlaSharp.Modules;

/// <summary>The check that a norm without a weight cannot leave to the operation.</summary>
internal static class NormSize
{
    public static void Check(Tensor x, long size)
    {
        ArgumentNullException.ThrowIfNull(x);
        if (x.dim() == 0 || x.size(-1) != size)
            throw new ArgumentException(
                $"x must have shape [..., D] with D = {size}, as this norm was made for, but has [{string.Join(", ", x.shape)}].",
                nameof(x));
    }
}
