using static TorchSharp.torch;

namespace FlaSharp.Autograd;

/// <summary>The place of a part's gradient in that of the whole.</summary>
internal sealed class GradientPlace(WholeGradient whole, int part)
{
    /// <summary>Uninitialised memory, the first time; null from then on.</summary>
    public Tensor? Take() => whole.Take(part);
}
