using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static Tensor Attention(Tensor q, Tensor k, Tensor v, bool causal = true, double? scale = null,
        int? window = null, Tensor? cuSeqlensQ = null, Tensor? cuSeqlensK = null, double? softcap = null,
        Tensor? sinks = null, Tensor? alibiSlopes = null, double dropout = 0.0) =>
        throw new NotImplementedException();
}
