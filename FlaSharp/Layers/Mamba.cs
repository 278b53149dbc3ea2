using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Layers;

/// <summary>Pending.</summary>
public sealed class Mamba : SequenceLayer
{
    /// <summary>Pending.</summary>
    public Mamba(long hiddenSize, int stateSize = 16, int convKernel = 4, int expand = 2, long? intermediateSize = null,
        int? timeStepRank = null, double timeStepScale = 1.0, double timeStepMin = 0.001, double timeStepMax = 0.1,
        double timeStepFloor = 1e-4, string timeStepInit = "random", bool useConvBias = true, bool useBias = false,
        string activation = "silu", bool keepFp32Parameters = true, Device? device = null, ScalarType? dtype = null)
        : base(nameof(Mamba)) => throw new NotImplementedException();

    /// <inheritdoc/>
    public override Tensor forward(Tensor x, Tensor? attentionMask, Tensor? cuSeqlens = null, LayerState? state = null) =>
        throw new NotImplementedException();
}
