using FlaSharp.Autograd;
using FlaSharp.Interop;
using FlaSharp.Kernels.Ssd;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>The state space duality on the CPU: <see cref="SsdCpu"/> as an operation of autograd. Saves its inputs alone.</summary>
internal sealed class SsdFunction(Sequences sequences, bool outputFinalState) : FlaFunction
{
    private const int InputCount = 7;

    /// <inheritdoc/>
    /// <param name="inputs">float32: x [B, T, H, P], dt and log-decay [B, T, H], b and c [B, T, G, N], d [H, P], initial state [S, H, P, N].</param>
    /// <param name="saved">The inputs.</param>
    protected override unsafe Tensor?[] Forward(Tensor?[] inputs, SavedTensors? saved)
    {
        var dense = inputs.Select((input, i) => i is 0 or 3 or 4 ? input!.DenseTokens(out _) : input?.contiguous()).ToArray();
        saved?.Save(dense);
        var kernel = Kernel(dense);
        var y = Scratch.Empty(dense[0]!.shape);
        var finalState = outputFinalState ? Scratch.Empty(StateSizes(dense)) : null;
        using var states = Scratch.Empty([kernel.StateBufferSize]);
        kernel.Forward(TensorPointer.Float32(y), TensorPointer.Float32(finalState), TensorPointer.Float32(states));
        GC.KeepAlive(dense);
        return [y, finalState];
    }

    protected override unsafe Tensor?[] Backward(SavedTensors saved, Tensor?[] gradOutputs)
    {
        var inputs = new Tensor?[InputCount];
        for (var i = 0; i < InputCount; i++)
            inputs[i] = saved[i];
        var kernel = Kernel(inputs);
        var gradY = gradOutputs[0]?.contiguous() ?? zeros_like(inputs[0]!);
        var gradFinal = gradOutputs[1]?.contiguous();
        var gradients = Array.ConvertAll(inputs, input => input is null ? null : Scratch.Empty(input.shape));
        using var gradDirect = inputs[5] is { } d ? Scratch.Empty([kernel.ChunkCount, d.size(0), d.size(1)]) : null;
        using var states = Scratch.Empty([kernel.StateBufferSize]);
        using var gradStates = Scratch.Empty([kernel.StateBufferSize]);
        kernel.Backward(TensorPointer.Float32(gradY), TensorPointer.Float32(gradFinal), new SsdGradients
        {
            X = TensorPointer.Float32(gradients[0]),
            Dt = TensorPointer.Float32(gradients[1]),
            LogDecay = TensorPointer.Float32(gradients[2]),
            B = TensorPointer.Float32(gradients[3]),
            C = TensorPointer.Float32(gradients[4]),
            D = TensorPointer.Float32(gradDirect),
            InitialState = saved.NeedsGrad[6] ? TensorPointer.Float32(gradients[6]) : null,
        }, TensorPointer.Float32(states), TensorPointer.Float32(gradStates));
        gradients[5] = gradDirect?.sum(dim: 0);
        GC.KeepAlive(inputs);
        GC.KeepAlive(gradY);
        GC.KeepAlive(gradFinal);
        return gradients;
    }

    private unsafe SsdCpu Kernel(Tensor?[] inputs)
    {
        var (x, b) = (inputs[0]!, inputs[3]!);
        x.DenseTokens(out var rowX);
        b.DenseTokens(out var rowB);
        inputs[4]!.DenseTokens(out var rowC);
        return new SsdCpu(sequences.Offsets)
        {
            Heads = (int)x.size(2),
            HeadSize = (int)x.size(3),
            Groups = (int)b.size(2),
            StateSize = (int)b.size(3),
            X = TensorPointer.Float32(x),
            RowX = rowX,
            Dt = TensorPointer.Float32(inputs[1]),
            LogDecay = TensorPointer.Float32(inputs[2]),
            B = TensorPointer.Float32(b),
            RowB = rowB,
            C = TensorPointer.Float32(inputs[4]),
            RowC = rowC,
            D = TensorPointer.Float32(inputs[5]),
            InitialState = TensorPointer.Float32(inputs[6]),
        };
    }

    private long[] StateSizes(Tensor?[] inputs) => [sequences.Count, inputs[0]!.size(2), inputs[0]!.size(3), inputs[3]!.size(3)];
}
