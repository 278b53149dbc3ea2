using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The operations as functions, without modules.</summary>
public static partial class FlaOps
{
    /// <summary>Pending.</summary>
    public static Tensor RotaryEmbedding(Tensor x, Tensor positions, double theta = 10000.0,
        bool interleaved = false, long? rotaryDim = null) =>
        throw new NotImplementedException();
}
