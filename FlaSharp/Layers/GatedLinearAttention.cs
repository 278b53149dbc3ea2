using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>Pending.</summary>
public sealed class GatedLinearAttention : SequenceLayer
{
    /// <summary>Pending.</summary>
    public GatedLinearAttention(long hiddenSize, int numHeads = 4, double expandK = 0.5, double expandV = 1.0,
        LinearAttentionMode mode = LinearAttentionMode.Auto, int? numKvHeads = null, string? featureMap = null,
        bool useShortConv = false, int convSize = 4, bool convBias = false, bool useOutputGate = true, string gateFn = "swish",
        double gateLogitNormalizer = 16, int gateLowRankDim = 16, double? clampMin = null, double normEps = 1e-5,
        bool elementwiseAffine = true, bool fuseNorm = true, bool keepFp32Parameters = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(GatedLinearAttention)) => throw new NotImplementedException();

    /// <inheritdoc/>
    public override Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null) =>
        throw new NotImplementedException();
}
