using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Norm;

/// <summary>
/// RMS norms, with a gate or the addition to a residual, on a GPU: the launches of Norm/rms_norm_*.cu. A row of
/// <see cref="Groups"/> * <see cref="Size"/> elements is normed group by group. What there is not has matrices that are none.
/// </summary>
internal sealed class RmsNormKernels(GpuDevice device)
{
    // For each multiprocessor. Each block of the backward pass writes a part of the weights' gradient, so they are no more than
    // run at once.
    private const int BackwardThreads = 1024;
    private const int ForwardThreads = 4096;

    private static readonly ConcurrentDictionary<(RmsNormTile, Pass, ElementType, RmsNormForm, ElementType), KernelVariant>
        s_variants = new();

    private enum Pass
    {
        Forward,
        Backward,
    }

    public required long Rows { get; init; }

    public required int Groups { get; init; }

    /// <summary>Of a group, from 1 to <see cref="RmsNormTile.MaxSize"/>.</summary>
    public required int Size { get; init; }

    /// <summary>Of all matrices but those of <see cref="Stream"/>.</summary>
    public required ElementType Element { get; init; }

    /// <summary>Of the residual, its sum with x, and their gradients: <see cref="Element"/> or float32.</summary>
    public required ElementType Stream { get; init; }

    /// <summary>Whether the weights are float32; otherwise they are of <see cref="Element"/>.</summary>
    public required bool FloatWeight { get; init; }

    public required float Eps { get; init; }

    /// <summary>True: act(gate) = gate * sigmoid(gate). False: sigmoid(gate).</summary>
    public required bool IsSwish { get; init; }

    /// <summary>Whether the gate multiplies x before the norm, not after it.</summary>
    public required bool GateFirst { get; init; }

    private NormSizes Sizes => new(Rows, Groups, Size);

    /// <summary>
    /// Kernels that stand for all: every tile with a gate, and the one of most columns for a thread in every form.
    /// </summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) =>
        from tile in RmsNormTile.All
        from element in ElementTypes.All
        from form in Enum.GetValues<RmsNormForm>()
        where tile.PerThread == 32 || (form == RmsNormForm.Gated && element != ElementType.Float16)
        from stream in form == RmsNormForm.Added ? [element, ElementType.Float32] : new[] { element }
        from pass in Enum.GetValues<Pass>()
        select Variant(tile, pass, element, form, stream);

    /// <summary>y, and what <see cref="Backward"/> needs.</summary>
    /// <param name="x">[Rows, Groups * Size].</param>
    /// <param name="gate">[Rows, Groups * Size], or none.</param>
    /// <param name="residual">[Rows, Groups * Size], or none; not with a gate.</param>
    /// <param name="weight">[Groups * Size], or 0 for ones.</param>
    /// <param name="sum">[Rows, Groups * Size], of x and the residual.</param>
    /// <param name="y">[Rows, Groups * Size].</param>
    /// <param name="scales">float32 [Rows, Groups], or 0 if unwanted.</param>
    public void Forward(
        NormMatrix x, NormMatrix gate, NormMatrix residual, nint weight, NormMatrix sum, NormMatrix y, nint scales)
    {
        var tile = Tile(weight, [x, gate, y], [residual, sum]);
        Launch(tile, Pass.Forward, Form(gate, residual), Parts(tile, ForwardThreads), new ForwardParameters
        {
            X = x,
            Gate = gate,
            Residual = residual,
            Sum = sum,
            Y = y,
            Weight = Weight(weight),
            Scales = scales,
            Sizes = Sizes,
            Eps = Eps,
            IsSwish = IsSwish ? 1 : 0,
            GateFirst = GateFirst ? 1 : 0,
        });
    }

    /// <summary>The gradients of the inputs, and the parts that the weights' gradient is the sum of.</summary>
    /// <param name="x">[Rows, Groups * Size], as all matrices: x, or its sum with the residual.</param>
    /// <param name="gate">See <paramref name="x"/>.</param>
    /// <param name="weight">[Groups * Size], or 0 for ones.</param>
    /// <param name="scales">Of <see cref="Forward"/>.</param>
    /// <param name="outputGradient">See <paramref name="x"/>.</param>
    /// <param name="sumGradient">Of the sum beside its norm, or none for zeros.</param>
    /// <param name="inputGradient">See <paramref name="x"/>.</param>
    /// <param name="gateGradient">See <paramref name="x"/>.</param>
    /// <param name="residualGradient">See <paramref name="x"/>.</param>
    /// <param name="makeParts">
    /// Gives memory for so many parts, each float32 [Groups * Size]; null if the weights' gradient is unwanted.
    /// </param>
    public void Backward(NormMatrix x, NormMatrix gate, nint weight, nint scales, NormMatrix outputGradient,
        NormMatrix sumGradient, NormMatrix inputGradient, NormMatrix gateGradient, NormMatrix residualGradient,
        Func<long, nint>? makeParts)
    {
        var tile = Tile(weight, [gate, outputGradient, inputGradient, gateGradient], [x, sumGradient, residualGradient]);
        var parts = Parts(tile, BackwardThreads);
        Launch(tile, Pass.Backward, Form(gate, residualGradient), parts, new BackwardParameters
        {
            X = x,
            Gate = gate,
            OutputGradient = outputGradient,
            SumGradient = sumGradient,
            InputGradient = inputGradient,
            GateGradient = gateGradient,
            ResidualGradient = residualGradient,
            Weight = Weight(weight),
            Scales = scales,
            WeightParts = makeParts?.Invoke(parts) ?? 0,
            Sizes = Sizes,
            IsSwish = IsSwish ? 1 : 0,
            GateFirst = GateFirst ? 1 : 0,
        });
    }

    private NormWeight Weight(nint weight) => new(weight, FloatWeight ? 1 : 0);

    private static RmsNormForm Form(NormMatrix gate, NormMatrix residual) =>
        gate.Data != 0 ? RmsNormForm.Gated : residual.Data != 0 ? RmsNormForm.Added : RmsNormForm.Plain;

    private RmsNormTile Tile(nint weight, ReadOnlySpan<NormMatrix> matrices, ReadOnlySpan<NormMatrix> stream)
    {
        const int Alignment = 16;
        var isAligned = Size * Element.Bytes() % Alignment == 0 && weight % Alignment == 0
            && AreAligned(matrices, Element.Bytes()) && AreAligned(stream, Stream.Bytes());
        return RmsNormTile.Of(Size, isAligned);

        static bool AreAligned(ReadOnlySpan<NormMatrix> matrices, int bytes)
        {
            foreach (var matrix in matrices)
                if (matrix.Data % Alignment != 0 || matrix.Row * bytes % Alignment != 0)
                    return false;
            return true;
        }
    }

    /// <summary>The blocks of each group.</summary>
    private long Parts(RmsNormTile tile, int threads)
    {
        var blocks = (long)device.Info.MultiprocessorCount * threads / tile.Threads;
        return Math.Min((Rows + tile.Lines - 1) / tile.Lines, Math.Max(1, blocks / Groups));
    }

    private static KernelVariant Variant(
        RmsNormTile tile, Pass pass, ElementType element, RmsNormForm form, ElementType stream) =>
        s_variants.GetOrAdd((tile, pass, element, form, stream), static key =>
            key.Item1.Variant(key.Item2 == Pass.Forward ? "forward" : "backward", key.Item3, key.Item4, key.Item5));

    private void Launch<TParameters>(RmsNormTile tile, Pass pass, RmsNormForm form, long parts, in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(device, Variant(tile, pass, Element, form, Stream));
        if (parts > 0)
            kernel.Launch(checked((uint)(parts * Groups)), 1, 1, LaunchStream.Current, parameters);
    }

    /// <summary>fla::NormWeight.</summary>
    private readonly record struct NormWeight(nint Data, int IsFloat);

    /// <summary>fla::NormSizes.</summary>
    private readonly record struct NormSizes(long Rows, int Groups, int Size);

    /// <summary>RmsNormForward of rms_norm_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public NormMatrix X;
        public NormMatrix Gate;
        public NormMatrix Residual;
        public NormMatrix Sum;
        public NormMatrix Y;
        public NormWeight Weight;
        public nint Scales;
        public NormSizes Sizes;
        public float Eps;
        public int IsSwish;
        public int GateFirst;
    }

    /// <summary>RmsNormBackward of rms_norm_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public NormMatrix X;
        public NormMatrix Gate;
        public NormMatrix OutputGradient;
        public NormMatrix SumGradient;
        public NormMatrix InputGradient;
        public NormMatrix GateGradient;
        public NormMatrix ResidualGradient;
        public NormWeight Weight;
        public nint Scales;
        public nint WeightParts;
        public NormSizes Sizes;
        public int IsSwish;
        public int GateFirst;
    }
}
