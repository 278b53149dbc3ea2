using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>Pending.</summary>
public sealed class Mamba2 : SequenceLayer
{
    /// <summary>Pending.</summary>
    public Mamba2(long hiddenSize, int headDim = 64, int stateSize = 128, int expand = 2, int? numHeads = null, int nGroups = 1, int convKernel = 4,
        (double min, double max)? aInitRange = null, double timeStepMin = 0.001, double timeStepMax = 0.1, double timeStepFloor = 1e-4,
        (double min, double max)? timeStepLimit = null, bool dHasHeadDim = false, bool rmsNorm = true, bool normBeforeGate = false,
        double normEps = 1e-5, bool useConvBias = true, bool useBias = false, string activation = "silu",
        bool keepFp32Parameters = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(Mamba2)) => throw new NotImplementedException();

    /// <inheritdoc/>
    public override Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null) =>
        throw new NotImplementedException();
}
