using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static (Tensor output, Tensor? finalState) CausalConv1d(Tensor x, Tensor weight, Tensor? bias = null,
        string? activation = null, Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null) =>
        throw new NotImplementedException();
}
