using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static (Tensor output, Tensor? finalState) Ssd(Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c,
        Tensor? d = null, Tensor? z = null, Tensor? dtBias = null, bool dtSoftplus = false, (double min, double max)? dtLimit = null,
        Tensor? initialState = null, bool outputFinalState = false, Tensor? cuSeqlens = null) =>
        throw new NotImplementedException();
}
