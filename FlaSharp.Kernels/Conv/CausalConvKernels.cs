using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Conv;

/// <summary>
/// The causal convolution on a GPU: the launches of Conv/causal_conv_*.cu. Tensors are [B, T, E] with dense channels; states are
/// float32 [S, E, W - 1].
/// </summary>
internal sealed class CausalConvKernels(GpuDevice device)
{
    private const int MinRun = 4; // below, a run reads its past more often than its tokens
    private const int MaxForwardRun = 64;
    private const int MaxBackwardRun = 128;
    private const int MaxParts = 128; // of the weights' gradient, where runs can be made longer
    private const int WarpsPerMultiprocessor = 16;
    private const int ThreadsPerMultiprocessor = 2048;
    private const int Alignment = 16;

    private static readonly ConcurrentDictionary<CausalConvTile, Passes> s_variants = new();

    public required SequenceLayout Sequences { get; init; }

    /// <summary>B * T.</summary>
    public required int Tokens { get; init; }

    /// <summary>E.</summary>
    public required int Channels { get; init; }

    /// <summary>W, up to <see cref="CausalConvTile.MaxWidth"/>.</summary>
    public required int Width { get; init; }

    /// <summary>Whether SiLU follows.</summary>
    public required bool IsSilu { get; init; }

    /// <summary>Of x and y.</summary>
    public required ElementType Element { get; init; }

    public required CausalConvParameters Parameters { get; init; }

    /// <summary>Kernels that stand for all.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) =>
        CausalConvTile.Representatives(isBackward: false).Select(tile => Variant(tile).Forward)
            .Concat(CausalConvTile.Representatives(isBackward: true)
                .SelectMany(tile => new[] { Variant(tile).Backward, Variant(tile).Sum }));

    /// <param name="x">[B, T, E].</param>
    /// <param name="initialState">Or 0 for zeros.</param>
    /// <param name="y">[B, T, E].</param>
    /// <param name="finalState">Or 0 if unwanted. It may be the initial one.</param>
    public void Forward(TensorView x, nint initialState, TensorView y, nint finalState)
    {
        // A state that is updated in place is for one warp to read and write. It is most of the work then, and its numbers of a
        // channel lie side by side.
        var isInPlace = finalState != 0 && finalState == initialState;
        var tile = Tile(isBackward: false, isNarrow: isInPlace, x, y);
        var shape = Shape(isInPlace ? Math.Max(1, Sequences.Length) : Run(tile, MaxForwardRun));
        Launch(Variant(tile).Forward, Rows(shape) * Groups(tile), new ForwardParameters
        {
            Shape = shape,
            X = x,
            Y = y,
            Parameters = Parameters,
            InitialState = initialState,
            FinalState = finalState,
        });
    }

    /// <summary>All gradients; those of weight and bias by way of parts, which are added up in order.</summary>
    /// <param name="x">[B, T, E].</param>
    /// <param name="initialState">Or 0 for zeros.</param>
    /// <param name="outputGradient">[B, T, E]; the default for zeros.</param>
    /// <param name="finalStateGradient">Or 0 for zeros.</param>
    /// <param name="inputGradient">[B, T, E].</param>
    /// <param name="initialStateGradient">Or 0 if unwanted.</param>
    /// <param name="weightGradient">Like the weight; or 0 if unwanted.</param>
    /// <param name="biasGradient">Like the bias; or 0 if unwanted.</param>
    /// <param name="makeParts">Gives memory for so many float32 numbers, where one of the last two is wanted.</param>
    public void Backward(TensorView x, nint initialState, TensorView outputGradient, nint finalStateGradient,
        TensorView inputGradient, nint initialStateGradient, nint weightGradient, nint biasGradient, Func<long, nint> makeParts)
    {
        var tile = Tile(isBackward: true, isNarrow: false, x, outputGradient, inputGradient);
        var run = Math.Max(Run(tile, MaxBackwardRun), (Tokens - 1) / (MaxParts * CausalConvTile.Warps) + 1);
        var shape = Shape(run);
        var (rows, groups, lines) = (Rows(shape), Groups(tile), Groups(tile) * (Width + 1L) * tile.Vector);
        var parts = weightGradient != 0 || biasGradient != 0 ? makeParts(rows * lines * 32) : 0;
        var variants = Variant(tile);
        Launch(variants.Backward, rows * groups, new BackwardParameters
        {
            Shape = shape,
            X = x,
            OutputGradient = outputGradient,
            InputGradient = inputGradient,
            Parameters = Parameters,
            InitialState = initialState,
            FinalStateGradient = finalStateGradient,
            InitialStateGradient = initialStateGradient,
            Parts = parts,
        });
        if (parts != 0)
            Launch(variants.Sum, (lines + CausalConvTile.Warps - 1) / CausalConvTile.Warps, new SumParameters
            {
                Parts = parts,
                Channels = Channels,
                Rows = checked((int)rows),
                WeightGradient = weightGradient,
                BiasGradient = biasGradient,
                FloatWeight = Parameters.FloatWeight,
                FloatBias = Parameters.FloatBias,
            });
    }

    private static Passes Variant(CausalConvTile tile) =>
        s_variants.GetOrAdd(tile, static tile => new Passes(tile.Forward(), tile.Backward(), tile.Sum()));

    private static long Rows(ConvShape shape) => (shape.Slots + CausalConvTile.Warps - 1) / CausalConvTile.Warps;

    private long Groups(CausalConvTile tile) => (Channels + tile.Group - 1) / tile.Group;

    private CausalConvTile Tile(bool isBackward, bool isNarrow, params ReadOnlySpan<TensorView> tensors)
    {
        // With less to do than the GPU has threads, each of them takes one channel.
        isNarrow |= (long)Tokens * Channels <= (long)device.Info.MultiprocessorCount * ThreadsPerMultiprocessor;
        var isAligned = Parameters.Weight % Alignment == 0 && Parameters.Bias % Alignment == 0;
        var (alignment, bytes) = (isAligned && !isNarrow ? Alignment : 1, Element.Bytes());
        Fit((long)Channels * bytes);
        foreach (var tensor in tensors)
        {
            Fit(tensor.Data);
            Fit(tensor.Batch * bytes);
            Fit(tensor.Time * bytes);
        }
        return CausalConvTile.Of(Element, Width, IsSilu, isBackward, alignment);

        void Fit(long place)
        {
            while (place % alignment != 0)
                alignment /= 2;
        }
    }

    /// <summary>Tokens of a warp: few enough to keep the GPU busy, and no more than go well.</summary>
    private int Run(CausalConvTile tile, int most)
    {
        var wanted = (long)device.Info.MultiprocessorCount * WarpsPerMultiprocessor;
        return (int)Math.Clamp(Tokens * Groups(tile) / wanted / MinRun * MinRun, MinRun, most);
    }

    private ConvShape Shape(int run)
    {
        var pieces = Math.Max(1, (Sequences.Length + run - 1) / run);
        var slots = Sequences.Offsets != 0 ? Tokens / run + Sequences.Count : checked(Sequences.Count * pieces);
        return new ConvShape(Sequences, Channels, run, pieces, slots);
    }

    private void Launch<TParameters>(KernelVariant variant, long blocks, in TParameters parameters)
        where TParameters : unmanaged =>
        KernelLibrary.Get(device, variant).Launch(checked((uint)blocks), 1, 1, LaunchStream.Current, parameters);

    private sealed record Passes(KernelVariant Forward, KernelVariant Backward, KernelVariant Sum);

    /// <summary>fla::ConvShape.</summary>
    private readonly record struct ConvShape(SequenceLayout Sequences, int Channels, int Run, int Pieces, int Slots);

    /// <summary>CausalConvForward of causal_conv_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public ConvShape Shape;
        public TensorView X;
        public TensorView Y;
        public CausalConvParameters Parameters;
        public nint InitialState;
        public nint FinalState;
    }

    /// <summary>CausalConvBackward of causal_conv_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public ConvShape Shape;
        public TensorView X;
        public TensorView OutputGradient;
        public TensorView InputGradient;
        public CausalConvParameters Parameters;
        public nint InitialState;
        public nint FinalStateGradient;
        public nint InitialStateGradient;
        public nint Parts;
    }

    /// <summary>CausalConvSum of causal_conv_sum.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct SumParameters
    {
        public nint Parts;
        public int Channels;
        public int Rows;
        public nint WeightGradient;
        public nint BiasGradient;
        public int FloatWeight;
        public int FloatBias;
    }
}
