namespace FlaSharp.Ops;

/// <summary>The implementations of attention.</summary>
internal enum AttentionPath
{
    /// <summary>This library's CUDA kernels.</summary>
    Kernels,

    /// <summary>libtorch's fused kernel.</summary>
    Libtorch,

    /// <summary>TorchSharp's operations over blocks of queries.</summary>
    Blocks,
}
