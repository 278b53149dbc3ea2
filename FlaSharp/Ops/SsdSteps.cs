using FlaSharp.Interop;
using FlaSharp.Kernels.Runtime;
using FlaSharp.Kernels.Ssd;
using TorchSharp;
using static TorchSharp.torch;

namespace FlaSharp.Ops;

/// <summary>A few tokens of the state space duality on a GPU, without gradients: <see cref="SsdRecurrenceKernel"/>.</summary>
internal static class SsdSteps
{
    /// <summary>Shapes and options as in <see cref="FlaOps.Ssd"/>, checked by the caller; the parameters are float32.</summary>
    /// <param name="x">[B, T, H, P].</param>
    /// <param name="dt">[B, T, H].</param>
    /// <param name="rates">[H].</param>
    /// <param name="b">[B, T, G, N].</param>
    /// <param name="c">[B, T, G, N].</param>
    /// <param name="direct">D, or null.</param>
    /// <param name="z">The gate, or null.</param>
    /// <param name="bias">[H], or null.</param>
    /// <param name="options">Of the step sizes.</param>
    /// <param name="initialState">Null for zeros.</param>
    /// <param name="sequences">The layout of the tokens.</param>
    /// <param name="outputFinalState">Whether the final state is wanted.</param>
    /// <param name="updateState">Whether it is written over the initial one.</param>
    public static (Tensor output, Tensor? finalState) Run(Tensor x, Tensor dt, Tensor rates, Tensor b, Tensor c, Tensor? direct,
        Tensor? z, Tensor? bias, SsdStepOptions options, Tensor? initialState, Sequences sequences, bool outputFinalState,
        bool updateState)
    {
        using var scope = NewDisposeScope();
        (x, b, c, z) = (x.DenseRows(), b.DenseRows(), c.DenseRows(), z?.DenseRows());
        (rates, direct, bias, initialState) = (rates.Dense(), direct?.Dense(), bias?.Dense(), initialState?.Dense());
        var offsets = sequences.OffsetsOn(x.device);
        var output = Scratch.Dense(x, x.dtype);
        var finalState = updateState ? initialState
            : outputFinalState ? Scratch.Empty([sequences.Count, x.Size(2), x.Size(3), b.Size(3)], device: x.device)
            : null;
        new SsdRecurrenceKernel(GpuDevice.Get(Math.Max(0, x.device_index)))
        {
            Sequences = new(TensorPointer.Of(offsets), sequences.Count, sequences.MaxLength, 0),
            Heads = checked((int)x.Size(2)),
            Groups = checked((int)b.Size(2)),
            HeadSize = checked((int)x.Size(3)),
            StateSize = checked((int)b.Size(3)),
            Element = x.dtype.Element()!.Value,
            Step = dt.dtype.Element()!.Value,
            Rule = options.Rule(bias, rates),
            Direct = TensorPointer.Of(direct),
            DirectPerChannel = direct is not null && direct.Rank() == 2,
        }.Run(x.View(), dt.View(), b.View(), c.View(), z.View(), TensorPointer.Of(initialState), output.View(),
            TensorPointer.Of(finalState));
        GC.KeepAlive((x, dt, b, c, z, offsets));
        GC.KeepAlive((rates, direct, bias, initialState));
        var returned = updateState ? initialState : finalState?.MoveToOuterDisposeScope();
        return (output.MoveToOuterDisposeScope(), outputFinalState ? returned : null);
    }
}
