namespace FlaSharp.Kernels.Norm;

/// <summary>What an RMS norm comes with.</summary>
internal enum RmsNormForm
{
    Plain,

    /// <summary>A gate, before or after it.</summary>
    Gated,

    /// <summary>The addition of x to a residual, whose sum is normed.</summary>
    Added,
}
