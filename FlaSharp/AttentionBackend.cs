namespace FlaSharp;

/// <summary>What computes softmax attention.</summary>
public enum AttentionBackend
{
    /// <summary>
    /// On a GPU this library's kernels where they know the call, unless libtorch was measured to be faster for it; elsewhere
    /// libtorch's kernel where it knows the options, otherwise TorchSharp's operations over blocks of queries.
    /// </summary>
    Auto,

    /// <summary>This library's CUDA kernels: bfloat16 and float16, K and V up to 256, all options.</summary>
    FlaSharp,

    /// <summary>libtorch's scaled_dot_product_attention: no options but causal and scale.</summary>
    Torch,
}
