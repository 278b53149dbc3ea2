using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>Pending.</summary>
public sealed class SoftmaxAttention : SequenceLayer
{
    /// <summary>Pending.</summary>
    public SoftmaxAttention(long hiddenSize, int numHeads, int? numKvHeads = null, int? headDim = null, int? window = null, double? ropeTheta = 10000.0,
        bool qkvBias = false, bool outputBias = false, bool qkNorm = false, double normEps = 1e-5, double dropout = 0.0,
        Device? device = null, ScalarType? dtype = null)
        : base(nameof(SoftmaxAttention)) => throw new NotImplementedException();

    /// <inheritdoc/>
    public override Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null) =>
        throw new NotImplementedException();
}
