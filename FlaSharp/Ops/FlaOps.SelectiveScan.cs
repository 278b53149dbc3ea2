using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static (Tensor output, Tensor? finalState) SelectiveScan(Tensor u, Tensor delta, Tensor a, Tensor b, Tensor c,
        Tensor? d = null, Tensor? z = null, Tensor? deltaBias = null, bool deltaSoftplus = false,
        Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null) =>
        throw new NotImplementedException();
}
