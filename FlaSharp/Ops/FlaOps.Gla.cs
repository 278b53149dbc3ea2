using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static (Tensor output, Tensor? finalState) Gla(Tensor q, Tensor k, Tensor v, Tensor g,
        LinearAttentionMode mode = LinearAttentionMode.Auto, double? scale = null, Tensor? initialState = null,
        bool outputFinalState = false, Tensor? cuSeqlens = null, bool reverse = false) =>
        throw new NotImplementedException();
}
