using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>
/// Gated linear attention as its recurrence, in float32, on a GPU: the launches of Gla/recurrent_*.cu. States are dense float32
/// [S, H, K, V].
/// </summary>
/// <remarks>
/// The gradients of k, v and g come for each query head. Where several of them share a kv head, ask for float32 and add them up.
/// </remarks>
internal sealed class GlaRecurrentKernels
{
    // Steps between two states that the first backward pass saves for the second.
    private const int SavedSteps = 128;

    private static readonly ConcurrentDictionary<
        (GlaRecurrentTile, ElementType, ElementType, Pass, CompilerTarget), KernelVariant> s_variants = new();

    private readonly GpuDevice _device;
    private readonly CompilerTarget _target;

    /// <exception cref="NotSupportedException">The GPU is too old.</exception>
    public GlaRecurrentKernels(GpuDevice device)
    {
        _device = device;
        _target = device.Target ?? throw new NotSupportedException(CudaRuntime.TooOld(device.Info));
    }

    private enum Pass
    {
        Forward,
        Query,
        Key,
    }

    /// <summary>Tokens in all sequences: B T.</summary>
    public required long Tokens { get; init; }

    public required SequenceLayout Sequences { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>Hkv, the heads of k, v and g: query head h reads head h / (H / Hkv).</summary>
    public required int KvHeads { get; init; }

    /// <summary>K, from 1 to 512, as V.</summary>
    public required int KeySize { get; init; }

    /// <summary>V.</summary>
    public required int ValueSize { get; init; }

    public required float Scale { get; init; }

    /// <summary>Of q, k, v and o.</summary>
    public required ElementType Element { get; init; }

    /// <summary>Of g: <see cref="Element"/> or float32.</summary>
    public required ElementType Gate { get; init; }

    /// <summary>Floats of the states that <see cref="BackwardQuery"/> leaves for <see cref="BackwardKey"/>.</summary>
    public long SavedStateCount
    {
        get
        {
            var tile = BackwardTile();
            return (Tokens / SavedSteps + Sequences.Count) * Heads * tile.Blocks(KeySize) * tile.Rows * tile.Columns;
        }
    }

    private int Lines => checked(Sequences.Count * Heads);

    /// <summary>
    /// Kernels that stand for all: every tile of bfloat16 on Hopper, every other one elsewhere, and each type with one tile.
    /// </summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        var tiles = GlaRecurrentTile.All.Where((_, i) => target.IsHopper || i % 2 == 0);
        var types =
            from element in ElementTypes.All
            from gate in new[] { element, ElementType.Float32 }.Distinct()
            select (GlaRecurrentTile.Of(64, 64, 1, 1), element, gate);
        return
            from call in tiles.Select(tile => (tile, ElementType.BFloat16, ElementType.BFloat16)).Concat(types)
            from pass in Enum.GetValues<Pass>()
            select Variant(call.Item1, call.Item2, call.Item3, pass, target);
    }

    /// <summary>o and the final state. One token costs a read and a write of the state.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="o">[B, T, H, V].</param>
    /// <param name="finalState">0 if unwanted; it may be <paramref name="initialState"/>.</param>
    public void Forward(
        TensorView q, TensorView k, TensorView v, TensorView g, nint initialState, TensorView o, nint finalState) =>
        Run(new ForwardParameters
        {
            Decay = g,
            Write = k,
            Value = v,
            Read = q,
            Output = o,
            InitialState = initialState,
            FinalState = finalState,
            Sequences = Sequences,
            ValueScale = 1,
            OutputScale = Scale,
        });

    /// <summary>The gradients of v and the initial state.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="outputGradient">[B, T, H, V].</param>
    /// <param name="finalStateGradient">0 for zeros.</param>
    /// <param name="valueGradient">[B, T, H, V].</param>
    /// <param name="initialStateGradient">0 if unwanted.</param>
    /// <param name="floatGradient">Whether <paramref name="valueGradient"/> is float32.</param>
    public void BackwardValue(TensorView q, TensorView k, TensorView g, TensorView outputGradient, nint finalStateGradient,
        TensorView valueGradient, nint initialStateGradient, bool floatGradient) =>
        Run(new ForwardParameters
        {
            Decay = g,
            Write = q,
            Value = outputGradient,
            Read = k,
            Output = valueGradient,
            InitialState = finalStateGradient,
            FinalState = initialStateGradient,
            Sequences = Sequences.Reversed,
            ValueScale = Scale,
            OutputScale = 1,
            Late = 1,
            FloatOutput = floatGradient ? 1 : 0,
        });

    /// <summary>The gradient of q, and what <see cref="BackwardKey"/> needs for that of g.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="outputGradient">[B, T, H, V].</param>
    /// <param name="queryGradient">[B, T, H, K].</param>
    /// <param name="product">float32 [B, T, H, K], or none.</param>
    /// <param name="savedStates"><see cref="SavedStateCount"/> floats, aligned to 16 bytes, or 0.</param>
    public void BackwardQuery(TensorView q, TensorView k, TensorView v, TensorView g, nint initialState,
        TensorView outputGradient, TensorView queryGradient, TensorView product, nint savedStates) =>
        Run(Pass.Query, new BackwardParameters
        {
            Decay = g,
            Write = v,
            Read = outputGradient,
            Value = k,
            Other = q,
            Output = queryGradient,
            Product = product,
            InitialState = initialState,
            SavedStates = savedStates,
            Sequences = Sequences,
            ValueScale = 1,
            OutputScale = Scale,
        });

    /// <summary>The gradients of k and g.</summary>
    /// <param name="q">[B, T, H, K].</param>
    /// <param name="k">[B, T, Hkv, K].</param>
    /// <param name="v">[B, T, Hkv, V].</param>
    /// <param name="g">[B, T, Hkv, K].</param>
    /// <param name="outputGradient">[B, T, H, V].</param>
    /// <param name="finalStateGradient">0 for zeros.</param>
    /// <param name="product">Of <see cref="BackwardQuery"/>; not needed without <paramref name="decayGradient"/>.</param>
    /// <param name="savedStates">Of <see cref="BackwardQuery"/>; not needed without <paramref name="decayGradient"/>.</param>
    /// <param name="keyGradient">[B, T, H, K].</param>
    /// <param name="decayGradient">[B, T, H, K], or none if unwanted.</param>
    /// <param name="floatGradients">Whether both gradients are float32.</param>
    public void BackwardKey(TensorView q, TensorView k, TensorView v, TensorView g, TensorView outputGradient,
        nint finalStateGradient, TensorView product, nint savedStates, TensorView keyGradient, TensorView decayGradient,
        bool floatGradients) =>
        Run(Pass.Key, new BackwardParameters
        {
            Decay = g,
            Write = outputGradient,
            Read = v,
            Value = q,
            Other = k,
            Output = keyGradient,
            Product = product,
            DecayGradient = decayGradient,
            InitialState = finalStateGradient,
            SavedStates = savedStates,
            Sequences = Sequences.Reversed,
            ValueScale = Scale,
            OutputScale = 1,
            FloatOutput = floatGradients ? 1 : 0,
            FloatDecayGradient = floatGradients ? 1 : 0,
        });

    private void Run(in ForwardParameters parameters)
    {
        var tile = GlaRecurrentTile.Of(KeySize, ValueSize, Lines, _device.Info.MultiprocessorCount);
        Launch(tile, Pass.Forward, tile.Blocks(ValueSize),
            parameters with { Heads = Heads, Group = Heads / KvHeads, KeySize = KeySize, ValueSize = ValueSize });
    }

    private void Run(Pass pass, in BackwardParameters parameters)
    {
        var tile = BackwardTile();
        Launch(tile, pass, tile.Blocks(KeySize),
            parameters with { Heads = Heads, Group = Heads / KvHeads, KeySize = KeySize, ValueSize = ValueSize });
    }

    private GlaRecurrentTile BackwardTile() => GlaRecurrentTile.Of(ValueSize, KeySize, Lines, _device.Info.MultiprocessorCount);

    private void Launch<TParameters>(GlaRecurrentTile tile, Pass pass, int slices, in TParameters parameters)
        where TParameters : unmanaged
    {
        var kernel = KernelLibrary.Get(_device, Variant(tile, Element, Gate, pass, _target));
        if (Lines > 0)
            kernel.Launch(checked((uint)Lines * (uint)slices), 1, 1, LaunchStream.Current, parameters);
    }

    private static KernelVariant Variant(
        GlaRecurrentTile tile, ElementType element, ElementType gate, Pass pass, CompilerTarget target) =>
        s_variants.GetOrAdd((tile, element, gate, pass, target), static key =>
        {
            var (tile, element, gate, pass, target) = key;
            return pass == Pass.Forward
                ? tile.Forward(element, gate, target)
                : tile.Backward(element, gate, pass == Pass.Key, SavedSteps, target);
        });

    /// <summary>GlaRecurrentForward of recurrent_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public TensorView Decay;
        public TensorView Write;
        public TensorView Value;
        public TensorView Read;
        public TensorView Output;
        public nint InitialState;
        public nint FinalState;
        public SequenceLayout Sequences;
        public int Heads;
        public int Group;
        public int KeySize;
        public int ValueSize;
        public float ValueScale;
        public float OutputScale;
        public int Late;
        public int FloatOutput;
    }

    /// <summary>GlaRecurrentBackward of recurrent_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public TensorView Decay;
        public TensorView Write;
        public TensorView Read;
        public TensorView Value;
        public TensorView Other;
        public TensorView Output;
        public TensorView Product;
        public TensorView DecayGradient;
        public nint InitialState;
        public nint SavedStates;
        public SequenceLayout Sequences;
        public int Heads;
        public int Group;
        public int KeySize;
        public int ValueSize;
        public float ValueScale;
        public float OutputScale;
        public int FloatOutput;
        public int FloatDecayGradient;
    }
}
