using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static Tensor RmsNorm(Tensor x, Tensor? weight, double eps = 1e-5) => throw new NotImplementedException();

    /// <summary>Pending.</summary>
    public static Tensor GatedRmsNorm(Tensor x, Tensor gate, Tensor? weight, double eps = 1e-5,
        string activation = "swish", bool normBeforeGate = true, long? groupSize = null) =>
        throw new NotImplementedException();
}
