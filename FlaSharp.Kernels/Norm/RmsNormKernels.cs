using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Norm;

/// <summary>
/// RMS norms, gated or not, on a GPU: the launches of Norm/rms_norm_*.cu. A row of <see cref="Groups"/> * <see cref="Size"/>
/// elements is normed group by group. Without a gate, its matrices are none.
/// </summary>
internal sealed class RmsNormKernels(GpuDevice device)
{
    // For each multiprocessor. Each block of the backward pass writes a part of the weights' gradient, so they are no more than
    // run at once.
    private const int BackwardThreads = 1024;
    private const int ForwardThreads = 4096;

    private static readonly bool[] s_withAndWithout = [true, false];
    private static readonly ConcurrentDictionary<(RmsNormTile, Pass, ElementType, bool), KernelVariant> s_variants = new();

    private enum Pass
    {
        Forward,
        Backward,
    }

    public required long Rows { get; init; }

    public required int Groups { get; init; }

    /// <summary>Of a group, from 1 to <see cref="RmsNormTile.MaxSize"/>.</summary>
    public required int Size { get; init; }

    /// <summary>Of all matrices.</summary>
    public required ElementType Element { get; init; }

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
        from isGated in s_withAndWithout
        where tile.PerThread == 32 || (isGated && element != ElementType.Float16)
        from pass in Enum.GetValues<Pass>()
        select Variant(tile, pass, element, isGated);

    /// <summary>y, and what <see cref="Backward"/> needs.</summary>
    /// <param name="x">[Rows, Groups * Size].</param>
    /// <param name="gate">[Rows, Groups * Size].</param>
    /// <param name="weight">[Groups * Size], or 0 for ones.</param>
    /// <param name="y">[Rows, Groups * Size].</param>
    /// <param name="scales">float32 [Rows, Groups], or 0 if unwanted.</param>
    public void Forward(NormMatrix x, NormMatrix gate, nint weight, NormMatrix y, nint scales)
    {
        var tile = Tile(weight, x, gate, y);
        Launch(tile, Pass.Forward, gate, Parts(tile, ForwardThreads), new ForwardParameters
        {
            X = x,
            Gate = gate,
            Y = y,
            Weight = Weight(weight),
            Scales = scales,
            Sizes = Sizes,
            Eps = Eps,
            IsSwish = IsSwish ? 1 : 0,
            GateFirst = GateFirst ? 1 : 0,
        });
    }

    /// <summary>The gradients of x and the gate, and the parts that the weights' gradient is the sum of.</summary>
    /// <param name="x">[Rows, Groups * Size], as all matrices.</param>
    /// <param name="gate">See <paramref name="x"/>.</param>
    /// <param name="weight">[Groups * Size], or 0 for ones.</param>
    /// <param name="scales">Of <see cref="Forward"/>.</param>
    /// <param name="outputGradient">See <paramref name="x"/>.</param>
    /// <param name="inputGradient">See <paramref name="x"/>.</param>
    /// <param name="gateGradient">See <paramref name="x"/>.</param>
    /// <param name="makeParts">
    /// Gives memory for so many parts, each float32 [Groups * Size]; null if the weights' gradient is unwanted.
    /// </param>
    public void Backward(NormMatrix x, NormMatrix gate, nint weight, nint scales, NormMatrix outputGradient,
        NormMatrix inputGradient, NormMatrix gateGradient, Func<long, nint>? makeParts)
    {
        var tile = Tile(weight, x, gate, outputGradient, inputGradient, gateGradient);
        var parts = Parts(tile, BackwardThreads);
        Launch(tile, Pass.Backward, gate, parts, new BackwardParameters
        {
            X = x,
            Gate = gate,
            OutputGradient = outputGradient,
            InputGradient = inputGradient,
            GateGradient = gateGradient,
            Weight = Weight(weight),
            Scales = scales,
            WeightParts = makeParts?.Invoke(parts) ?? 0,
            Sizes = Sizes,
            IsSwish = IsSwish ? 1 : 0,
            GateFirst = GateFirst ? 1 : 0,
        });
    }

    private NormWeight Weight(nint weight) => new(weight, FloatWeight ? 1 : 0);

    private RmsNormTile Tile(nint weight, params ReadOnlySpan<NormMatrix> matrices)
    {
        const int Alignment = 16;
        var bytes = Element.Bytes();
        var isAligned = Size * bytes % Alignment == 0 && weight % Alignment == 0;
        foreach (var matrix in matrices)
            isAligned &= matrix.Data % Alignment == 0 && matrix.Row * bytes % Alignment == 0;
        return RmsNormTile.Of(Size, isAligned);
    }

    /// <summary>The blocks of each group.</summary>
    private long Parts(RmsNormTile tile, int threads)
    {
        var blocks = (long)device.Info.MultiprocessorCount * threads / tile.Threads;
        return Math.Min((Rows + tile.Lines - 1) / tile.Lines, Math.Max(1, blocks / Groups));
    }

    private static KernelVariant Variant(RmsNormTile tile, Pass pass, ElementType element, bool isGated) =>
        s_variants.GetOrAdd((tile, pass, element, isGated), static key =>
            key.Item1.Variant(key.Item2 == Pass.Forward ? "forward" : "backward", key.Item3, key.Item4));

    private void Launch<TParameters>(RmsNormTile tile, Pass pass, NormMatrix gate, long parts, in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(device, Variant(tile, pass, Element, gate.Data != 0));
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
        public NormMatrix InputGradient;
        public NormMatrix GateGradient;
        public NormWeight Weight;
        public nint Scales;
        public nint WeightParts;
        public NormSizes Sizes;
        public int IsSwish;
        public int GateFirst;
    }
}
