using FlaSharp.Modules;
using static TorchSharp.torch;

namespace FlaSharp.Models;

/// <summary>
/// The residual stream between the parts of a model. What a part adds waits for the next norm, which takes the sum in the same
/// pass over memory.
/// </summary>
/// <param name="Stream">[B, T, D], in the dtype of the weights, or float32.</param>
/// <param name="Added">[B, T, D] in the dtype of the weights, what the stream still lacks; null before the first part.</param>
internal readonly record struct Residual(Tensor Stream, Tensor? Added = null)
{
    /// <summary>
    /// The norm of the whole stream, in the dtype of the weights, and the stream as it then is. Frees the tensors that it sums.
    /// </summary>
    public (Tensor normed, Tensor stream) Norm(RMSNorm norm)
    {
        if (Added is null)
            return (norm.forward(Stream.to(norm.Weight!.dtype)), Stream);
        var result = norm.forward(Added, Stream);
        Added.Dispose();
        Stream.Dispose();
        return result;
    }
}
