using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.SelectiveScan;

/// <summary>The selective scan on a GPU: the launches of SelectiveScan/*.cu. States are dense float32 [S, E, N].</summary>
internal sealed class SelectiveScanKernels
{
    private const int JoinThreads = 256;
    private const int SumThreads = 256;

    private static readonly KernelVariant s_join =
        new("SelectiveScan/segment_join.cu", "selective_scan_segment_join", [], JoinThreads, SharedBytes: 0);

    private static readonly ConcurrentDictionary<
        (Pass, SelectiveScanTile, ElementType, bool, bool, bool, bool), KernelVariant> s_variants = new();

    private static readonly ConcurrentDictionary<(ElementType, bool), KernelVariant> s_sums = new();

    private static readonly SelectiveScanTile[] s_otherForwardTiles =
    [
        new(IsAligned: true, IsNarrow: true), new(IsAligned: true, IsLong: true),
        new(IsAligned: true, IsNarrow: true, IsLong: true),
    ];

    private static readonly ElementType[] s_extremeElements = [ElementType.BFloat16, ElementType.Float32];

    private static readonly bool[] s_both = [false, true];

    private readonly GpuDevice _device;

    /// <exception cref="NotSupportedException">The GPU is too old.</exception>
    public SelectiveScanKernels(GpuDevice device)
    {
        _device = device;
        if (device.Target is null)
            throw new NotSupportedException(CudaRuntime.TooOld(device.Info));
    }

    private enum Pass
    {
        Forward,
        Backward,
        ForwardSegments,
        BackwardSegments,
    }

    /// <summary>Tokens in all sequences: B T.</summary>
    public required long Tokens { get; init; }

    public required SequenceLayout Sequences { get; init; }

    /// <summary>E.</summary>
    public required int Channels { get; init; }

    /// <summary>G, of B and C: channel e reads group e / (E / G).</summary>
    public required int Groups { get; init; }

    /// <summary>N.</summary>
    public required int States { get; init; }

    /// <summary>Of u, delta, z, B, C, y and their gradients.</summary>
    public required ElementType Element { get; init; }

    public required bool HasSoftplus { get; init; }

    /// <summary>Whether A is given as log(-A).</summary>
    public required bool AIsLog { get; init; }

    /// <summary>Another cut than the one that keeps the GPU busy; null for that.</summary>
    public SelectiveScanCut? Cut { get; init; }

    /// <summary>The forward pass's.</summary>
    public SelectiveScanCut ForwardCut =>
        Cut ?? SelectiveScanCut.Forward(Channels, Groups, Sequences.Count, Sequences.Length, _device.Info.MultiprocessorCount);

    /// <summary>The backward pass's: it leaves gradients of A, D and the bias for each sequence and segment.</summary>
    public SelectiveScanCut BackwardCut => Cut is { } cut
        ? cut with { IsNarrow = false }
        : SelectiveScanCut.Backward(
            Channels, Groups, Sequences.Count, Sequences.Length, _device.Info.MultiprocessorCount, Element);

    /// <summary>States [E, N] that <see cref="Forward"/> saves for <see cref="Backward"/>.</summary>
    public long SavedStates => Tokens / SelectiveScanTile.SavedSteps + Sequences.Count;

    /// <summary>Blocks of a group: each leaves gradients of B and C.</summary>
    public long GroupBlocks => new SelectiveScanTile(IsAligned: true).GroupBlocks(Channels, Groups);

    /// <summary>Whether states wait in memory while others are worked on.</summary>
    public bool HasSlices => Slices > 1;

    // Numbers of B.
    private long MatrixSize => Tokens * Groups * States;

    private int Slices => (States + SelectiveScanTile.Slice - 1) / SelectiveScanTile.Slice;

    /// <summary>Kernels that stand for all: each type and constant is in one of them.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        (bool isAligned, ElementType element, bool isGated, bool hasSoftplus)[] calls =
        [
            (true, ElementType.BFloat16, true, true), (true, ElementType.BFloat16, false, false),
            (true, ElementType.Float16, true, true), (false, ElementType.Float32, true, true),
        ];
        return
        [
            .. from call in calls
            from pass in Enum.GetValues<Pass>()
            from hasSlices in s_both
            where !hasSlices || pass is Pass.Forward or Pass.Backward
            from areFew in s_both
            where !areFew || pass is Pass.Backward
            select Variant(
                pass, new SelectiveScanTile(call.isAligned), call.element, call.isGated, call.hasSoftplus, hasSlices, areFew),
            .. from tile in s_otherForwardTiles
            where !tile.IsLong || HasRoom(target.MaxSharedBytes)
            from element in s_extremeElements
            from hasSlices in s_both
            select Variant(Pass.Forward, tile, element, true, true, hasSlices, areFew: false),
            s_join,
            .. calls.Select(call => Sums(call.element, call.isAligned)).Distinct(),
        ];
    }

    /// <summary>y and the final state. One token costs a read and a write of the state.</summary>
    /// <param name="inputs">What is read.</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="y">[B, T, 1, E].</param>
    /// <param name="finalState">0 if unwanted; it may be <paramref name="initialState"/>.</param>
    /// <param name="savedStates"><see cref="SavedStates"/> [E, N], or 0 if there is no backward pass.</param>
    /// <param name="waiting">[S, segments, E, N] with <see cref="ForwardCut"/>, for <see cref="HasSlices"/>; else 0.</param>
    /// <param name="segmentStates">[S, states, E, N] if <see cref="ForwardCut"/> has several segments; else 0.</param>
    /// <param name="segmentDeltas">[S, states, E] if <see cref="ForwardCut"/> has several segments; else 0.</param>
    public void Forward(in SelectiveScanInputs inputs, nint initialState, TensorView y, nint finalState, nint savedStates,
        nint waiting, nint segmentStates, nint segmentDeltas)
    {
        var (cut, isAligned) = (ForwardCut, IsAligned(inputs) && IsAligned(y));
        var scan = Parameters(inputs, cut);
        // A narrow tile that is long leaves no room for a second block, and a wide one for a third.
        var blocks = Sequences.Count * new SelectiveScanTile(isAligned).Blocks(Channels, Groups) * cut.Segments;
        var isLong = isAligned && HasRoom(_device.Info.MaxSharedBytesPerBlock)
            && (cut.IsNarrow ? cut.Segments == 1 : blocks <= 2L * _device.Info.MultiprocessorCount);
        Launch(Pass.Forward, new SelectiveScanTile(isAligned, cut.IsNarrow, isLong), inputs, cut.Segments, new ForwardParameters
        {
            Scan = scan,
            Y = y,
            InitialState = Join(scan, default, initialState, segmentStates, segmentDeltas, isAligned, isBackward: false),
            FinalState = finalState,
            Waiting = waiting,
            SavedStates = savedStates,
        });
    }

    /// <summary>All gradients.</summary>
    /// <param name="inputs">What was read.</param>
    /// <param name="outputs">Where the gradients go, and what comes in.</param>
    /// <param name="parts">Room for what blocks leave of the gradients of A, D, the bias, B and C.</param>
    /// <param name="savedStates">Of <see cref="Forward"/>.</param>
    /// <param name="waiting">[S, segments, E, N] with <see cref="BackwardCut"/>, for <see cref="HasSlices"/>; else 0.</param>
    /// <param name="segmentStates">[S, states, E, N] if <see cref="BackwardCut"/> has several segments; else 0.</param>
    /// <param name="segmentDeltas">[S, states, E] if <see cref="BackwardCut"/> has several segments; else 0.</param>
    public void Backward(in SelectiveScanInputs inputs, in SelectiveScanGradients outputs, in SelectiveScanParts parts,
        nint savedStates, nint waiting, nint segmentStates, nint segmentDeltas)
    {
        var isAligned = IsAligned(inputs) && IsAligned(outputs.Y) && IsAligned(outputs.U) && IsAligned(outputs.Delta)
            && IsAligned(outputs.Z);
        var scan = Parameters(inputs, BackwardCut);
        Launch(Pass.Backward, new SelectiveScanTile(isAligned), inputs, scan.Segments, new BackwardParameters
        {
            Scan = scan,
            Y = outputs.Y,
            U = outputs.U,
            Delta = outputs.Delta,
            Z = outputs.Z,
            SavedStates = savedStates,
            FinalState = Join(scan, outputs.Y, outputs.FinalState, segmentStates, segmentDeltas, isAligned, isBackward: true),
            InitialState = outputs.InitialState,
            Waiting = waiting,
            A = parts.A,
            D = parts.D,
            DeltaBias = parts.DeltaBias,
            B = parts.Matrices,
            C = parts.Matrices + (nint)(GroupBlocks * MatrixSize * SelectiveScanTile.KeptAs(Element).Bytes()),
            Tokens = Tokens,
        });
        AddUp(inputs, outputs, parts, scan.Segments);
    }

    private void AddUp(
        in SelectiveScanInputs inputs, in SelectiveScanGradients outputs, in SelectiveScanParts parts, int segments)
    {
        var isAligned = Channels % SelectiveScanTile.Vector == 0 && States % SelectiveScanTile.Vector == 0
            && (outputs.A | outputs.D | outputs.DeltaBias | outputs.B | outputs.C | inputs.A) % 16 == 0
            && (parts.A | parts.D | parts.DeltaBias | parts.Matrices) % 16 == 0;
        var sums = new GradientSumsParameters
        {
            MatrixParts = parts.Matrices,
            B = outputs.B,
            C = outputs.C,
            PartsOfA = parts.A,
            PartsOfD = parts.D,
            PartsOfBias = parts.DeltaBias,
            A = outputs.A,
            D = outputs.D,
            Bias = outputs.DeltaBias,
            LogOfA = AIsLog ? inputs.A : 0,
            MatrixSize = MatrixSize,
            SizeOfA = (long)Channels * States,
            SizeOfD = outputs.D == 0 ? 0 : Channels,
            SizeOfBias = outputs.DeltaBias == 0 ? 0 : Channels,
            GroupBlocks = checked((int)GroupBlocks),
            Rows = Sequences.Count * segments,
        };
        var (numbers, floats) = isAligned ? (SelectiveScanTile.Vector, SelectiveScanTile.Vector / 2) : (1, 1);
        var threads = 2 * MatrixSize / numbers + (sums.SizeOfA + sums.SizeOfD + sums.SizeOfBias) / floats;
        KernelLibrary.Get(_device, Sums(Element, isAligned)).Launch(
            checked((uint)((threads + SumThreads - 1) / SumThreads)), 1, 1, LaunchStream.Current, sums, startsEarly: true);
    }

    /// <summary>The states that segments start from, or the gradients of those that they end with; one of each's parts.</summary>
    private nint Join(in ScanParameters scan, TensorView outputGradient, nint start, nint states, nint deltas, bool isAligned,
        bool isBackward)
    {
        if (scan.Segments == 1)
            return start;
        var ofParts = scan with { Segments = scan.Segments * scan.Parts, SegmentSteps = scan.SegmentSteps / scan.Parts };
        Launch(isBackward ? Pass.BackwardSegments : Pass.ForwardSegments, new SelectiveScanTile(isAligned), scan.Inputs,
            ofParts.Segments * (long)Slices,
            new SegmentStateParameters { Scan = ofParts, Y = outputGradient, States = states, Deltas = deltas });

        var kernel = KernelLibrary.Get(_device, s_join);
        var blocks = ((long)Sequences.Count * Channels * States + JoinThreads - 1) / JoinThreads;
        var parameters = new SegmentJoinParameters
        {
            States = states,
            Deltas = deltas,
            A = scan.Inputs.A,
            Start = start,
            Sequences = Sequences.Count,
            Channels = Channels,
            StateCount = States,
            Segments = ofParts.Segments,
            Parts = scan.Parts,
            Backward = isBackward ? 1 : 0,
            IsLog = scan.IsLog,
        };
        kernel.Launch(checked((uint)blocks), 1, 1, LaunchStream.Current, parameters, startsEarly: true);
        return states + (isBackward ? (nint)(scan.Parts - 1) * Channels * States * sizeof(float) : 0);
    }

    private ScanParameters Parameters(in SelectiveScanInputs inputs, SelectiveScanCut cut) => new()
    {
        Inputs = inputs,
        Sequences = Sequences,
        Channels = Channels,
        GroupChannels = Channels / Groups,
        States = States,
        Segments = cut.Segments,
        SegmentSteps = cut.Steps,
        Groups = Groups,
        IsLog = AIsLog ? 1 : 0,
        Parts = cut.Parts,
    };

    private static bool HasRoom(int sharedBytes) => sharedBytes >= 160 << 10;

    private bool IsAligned(in SelectiveScanInputs inputs) =>
        Channels / Groups % SelectiveScanTile.Vector == 0 && States % SelectiveScanTile.Vector == 0
        && IsAligned(inputs.U) && IsAligned(inputs.Delta) && IsAligned(inputs.Z) && IsAligned(inputs.B) && IsAligned(inputs.C)
        && (inputs.D | inputs.DeltaBias) % 16 == 0;

    private bool IsAligned(TensorView view) =>
        view.Data % 16 == 0 && (view.Batch | view.Time | view.Head) * Element.Bytes() % 16 == 0;

    private void Launch<TParameters>(
        Pass pass, SelectiveScanTile tile, in SelectiveScanInputs inputs, long parts, in TParameters parameters)
        where TParameters : unmanaged
    {
        var blocks = Sequences.Count * tile.Blocks(Channels, Groups) * parts;
        var areFew = pass == Pass.Backward && SelectiveScanTile.AreFew(blocks, _device.Info.MultiprocessorCount);
        var kernel = KernelLibrary.Get(_device, Variant(pass, tile, Element, inputs.Z.Data != 0, HasSoftplus, HasSlices, areFew));
        var isJoined = pass is Pass.Forward or Pass.Backward && parts > 1;
        kernel.Launch(checked((uint)blocks), 1, 1, LaunchStream.Current, parameters, startsEarly: isJoined);
    }

    private static KernelVariant Sums(ElementType element, bool isAligned) => s_sums.GetOrAdd((element, isAligned), static key =>
        new("SelectiveScan/gradient_sums.cu", "selective_scan_gradient_sums",
            [$"ELEMENT={key.Item1.Name()}", $"VECTOR={(key.Item2 ? SelectiveScanTile.Vector : 1)}"], SumThreads, SharedBytes: 0));

    private static KernelVariant Variant(
        Pass pass, SelectiveScanTile tile, ElementType element, bool isGated, bool hasSoftplus, bool hasSlices, bool areFew) =>
        s_variants.GetOrAdd((pass, tile, element, isGated, hasSoftplus, hasSlices, areFew), static key =>
        {
            var (pass, tile, element, isGated, hasSoftplus, hasSlices, areFew) = key;
            var isBackward = pass == Pass.BackwardSegments;
            return pass switch
            {
                Pass.Forward => tile.Forward(element, isGated, hasSoftplus, hasSlices),
                Pass.Backward => tile.Backward(element, isGated, hasSoftplus, hasSlices, areFew),
                _ => tile.SegmentState(element, isGated && isBackward, hasSoftplus, isBackward),
            };
        });

    /// <summary>fla::SelectiveScan.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ScanParameters
    {
        public SelectiveScanInputs Inputs;
        public SequenceLayout Sequences;
        public int Channels;
        public int GroupChannels;
        public int States;
        public int Segments;
        public int SegmentSteps;
        public int Groups;
        public int IsLog;
        public int Parts;
    }

    /// <summary>SelectiveScanForward of scan_forward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct ForwardParameters
    {
        public ScanParameters Scan;
        public TensorView Y;
        public nint InitialState;
        public nint FinalState;
        public nint Waiting;
        public nint SavedStates;
    }

    /// <summary>SelectiveScanBackward of scan_backward.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct BackwardParameters
    {
        public ScanParameters Scan;
        public TensorView Y;
        public TensorView U;
        public TensorView Delta;
        public TensorView Z;
        public nint SavedStates;
        public nint FinalState;
        public nint InitialState;
        public nint Waiting;
        public nint A;
        public nint D;
        public nint DeltaBias;
        public nint B;
        public nint C;
        public long Tokens;
    }

    /// <summary>SelectiveScanGradientSums of gradient_sums.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct GradientSumsParameters
    {
        public nint MatrixParts;
        public nint B;
        public nint C;
        public nint PartsOfA;
        public nint PartsOfD;
        public nint PartsOfBias;
        public nint A;
        public nint D;
        public nint Bias;
        public nint LogOfA;
        public long MatrixSize;
        public long SizeOfA;
        public long SizeOfD;
        public long SizeOfBias;
        public int GroupBlocks;
        public int Rows;
    }

    /// <summary>SelectiveScanSegmentState of segment_state.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct SegmentStateParameters
    {
        public ScanParameters Scan;
        public TensorView Y;
        public nint States;
        public nint Deltas;
    }

    /// <summary>SelectiveScanSegmentJoin of segment_join.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct SegmentJoinParameters
    {
        public nint States;
        public nint Deltas;
        public nint A;
        public nint Start;
        public long Sequences;
        public int Channels;
        public int StateCount;
        public int Segments;
        public int Parts;
        public int Backward;
        public int IsLog;
    }
}
