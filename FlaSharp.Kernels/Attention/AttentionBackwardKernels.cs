using System.Collections.Concurrent;
using FlaSharp.Kernels.Interop;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>
/// Softmax attention's gradients on a GPU: the launches of Attention/backward_*.cu and *_backward.cu. Sums over blocks are made
/// in a fixed order, so the results of two calls are the same to the bit.
/// </summary>
internal sealed class AttentionBackwardKernels
{
    private const int Alignment = 256; // of each part of the workspace

    private static readonly ConcurrentDictionary<(AttentionBackwardTile, Pass, int), KernelVariant> s_variants = new();
    private static readonly ExpectedKernels<(AttentionBackwardTile Tile, int Vector)> s_expected = new(static call =>
        [.. new[] { Pass.Main, Pass.Delta, Pass.Queries }.Select(pass => Variant(call.Tile, pass, call.Vector))]);

    private enum Pass
    {
        Delta,
        Main,
        Queries,
        Sinks,
    }

    /// <summary>Whether Hopper's kernel is left aside where it could run.</summary>
    public bool IsPortable { get; init; }

    /// <summary>Kernels that stand for all.</summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        const ElementType BFloat16 = ElementType.BFloat16, Float16 = ElementType.Float16;
        (int size, ElementType element, bool hasOptions, int vector)[] portable =
        [
            (16, BFloat16, true, 1), (64, BFloat16, false, 8), (128, Float16, true, 2), (256, BFloat16, false, 8),
            (256, BFloat16, true, 1),
        ];
        (int keys, int values, ElementType element, bool hasOptions)[] hopper =
        [
            (32, 32, BFloat16, false), (64, 64, BFloat16, true), (128, 128, BFloat16, false), (128, 64, Float16, false),
            (256, 256, BFloat16, false),
        ];
        foreach (var (size, element, hasOptions, vector) in portable)
            foreach (var pass in new[] { Pass.Delta, Pass.Main, Pass.Queries })
                yield return Variant(
                    AttentionBackwardTile.Portable(size, size, element, hasOptions, vector, target), pass, vector);
        if (target.IsHopper)
            foreach (var (keys, values, element, hasOptions) in hopper)
                yield return Variant(AttentionBackwardTile.Hopper(keys, values, element, hasOptions), Pass.Main, TensorView.MostVector);
        yield return AttentionBackwardTile.Sinks();
    }

    /// <summary>
    /// Begins to load the kernels of a call's backward pass, the first time, while forward runs. A failure shows when they are
    /// launched.
    /// </summary>
    /// <param name="problem">The call.</param>
    /// <param name="views">Its inputs and outputs; the gradients are expected to be aligned as well.</param>
    public static void ExpectBackward(AttentionProblem problem, params ReadOnlySpan<TensorView> views)
    {
        s_expected.Begin(problem.Device, Choose(problem, false, views));
    }

    /// <summary>What <see cref="Backward"/> works in.</summary>
    public static long WorkspaceBytes(AttentionProblem problem) => Workspace.Of(problem, 0).Bytes;

    /// <summary>The gradients of q, k, v and the sinks.</summary>
    /// <param name="problem">The call.</param>
    /// <param name="q">[B, Tq, H, K].</param>
    /// <param name="k">[B, Tk, Hkv, K].</param>
    /// <param name="v">[B, Tk, Hkv, V].</param>
    /// <param name="o">[B, Tq, H, V].</param>
    /// <param name="outputGradient">[B, Tq, H, V].</param>
    /// <param name="logSumExp">Of <see cref="AttentionForwardKernels.Forward"/>.</param>
    /// <param name="queryGradient">[B, Tq, H, K].</param>
    /// <param name="keyGradient">[B, Tk, Hkv, K].</param>
    /// <param name="valueGradient">[B, Tk, Hkv, V].</param>
    /// <param name="sinksGradient">float32 [H]; 0 if unwanted.</param>
    /// <param name="workspace"><see cref="WorkspaceBytes"/>, at a multiple of 256.</param>
    public void Backward(AttentionProblem problem, TensorView q, TensorView k, TensorView v, TensorView o,
        TensorView outputGradient, nint logSumExp, TensorView queryGradient, TensorView keyGradient, TensorView valueGradient,
        nint sinksGradient, nint workspace)
    {
        var (tile, vector) = Choose(
            problem, IsPortable, q, k, v, o, outputGradient, queryGradient, keyGradient, valueGradient);
        var parts = Workspace.Of(problem, workspace);
        var shape = AttentionParameters.Shape.Of(problem);
        var queryBlocks = CeilingOf(problem.Queries.Length, AttentionBackwardTile.QueryBlock);
        var queryGrid = checked(queryBlocks * problem.Queries.Count * problem.Heads);

        void Launch<TParameters>(Pass pass, int blocks, in TParameters parameters)
            where TParameters : unmanaged
        {
            if (blocks > 0)
                KernelLibrary.Get(problem.Device, Variant(tile, pass, vector))
                    .Launch((uint)blocks, 1, 1, LaunchStream.Current, parameters, startsEarly: true);
        }

        Launch(Pass.Delta, queryGrid, new AttentionBackwardParameters.Delta
        {
            Shape = shape,
            Output = o,
            GradOutput = outputGradient,
            LogSumExp = logSumExp,
            Logs = parts.Logs,
            Deltas = parts.Deltas,
            Sinks = sinksGradient == 0 ? 0 : parts.Sinks,
            Turns = parts.Turns,
            Time = problem.QueryTime,
            TurnCount = AttentionBackwardTile.QueryBlock / tile.QueryRows * tile.SumParts,
            Blocks = queryBlocks,
        });
        if (sinksGradient != 0)
            Launch(Pass.Sinks, problem.Heads,
                new AttentionBackwardParameters.Sinks { Shape = shape, Blocks = parts.Sinks, Gradient = sinksGradient });

        var lines = checked(problem.Keys.Count * problem.KvHeads);
        var together = Math.Min(TogetherOf(problem, tile), Math.Max(1, lines));
        var call = new AttentionBackwardParameters.Backward
        {
            Shape = shape,
            Q = q,
            K = k,
            V = v,
            GradOutput = outputGradient,
            GradK = keyGradient,
            GradV = valueGradient,
            Logs = parts.Logs,
            Deltas = parts.Deltas,
            Sums = parts.Sums,
            Turns = parts.Turns,
            Lines = lines,
            Together = together,
            KeyTiles = CeilingOf(problem.Keys.Length, tile.KeyRows),
            // Under a causal mask blocks with the highest keys have the fewest queries, the last ones: where these come first, no
            // block waits for long. In the end the longest ones come first, so that all GPU's processors are done together.
            Descending = problem.IsCausal ? (lines - 1) / together * together : 0,
        };
        var blocks = checked(lines * call.KeyTiles);
        if (tile.UsesHopper)
            Launch(Pass.Main, blocks, Maps(problem, tile, call));
        else
            Launch(Pass.Main, blocks, call);

        Launch(Pass.Queries, queryGrid, new AttentionBackwardParameters.Queries
        {
            Shape = shape,
            Gradient = queryGradient,
            Sums = parts.Sums,
            Blocks = queryBlocks,
        });
    }

    private static int CeilingOf(int count, int size) => (count + size - 1) / size;

    /// <summary>
    /// Heads whose blocks run side by side. Blocks of one head share its queries in the L2 cache, but wait for one another: the
    /// more of them the longer, and with a causal mask less, where they begin one after the other.
    /// </summary>
    private static int TogetherOf(AttentionProblem problem, AttentionBackwardTile tile)
    {
        const float Numbers = 1 << 22; // measured on an H200
        var heads = Numbers / Math.Max(1, problem.Keys.Length) / Math.Max(tile.Keys, tile.Values);
        return (int)Math.Clamp(problem.IsCausal ? heads * heads / 16 : heads, 1, 32);
    }

    private static (AttentionBackwardTile, int vector) Choose(
        AttentionProblem problem, bool isPortable, params ReadOnlySpan<TensorView> views)
    {
        var hasOptions = problem is { Softcap: not 0 } or { Dropout: not 0 } or { Scale: not > 0 } || problem.AlibiSlopes != 0;
        var vector = TensorView.Vector(problem.Element, problem.KeySize | problem.ValueSize, views);
        var isForward = true; // no stride is negative
        foreach (var view in views)
            isForward &= view is { Batch: >= 0, Time: >= 0, Head: >= 0 };
        var target = problem.Device.Target!;
        var usesHopper = target.IsHopper && !isPortable && isForward && vector == TensorView.MostVector
            && problem is { QueryTime: > 0, KeyTime: > 0 }
            && AttentionBackwardTile.FitsHopper(problem.KeySize, problem.ValueSize, hasOptions);
        var (keySize, valueSize, element) = (problem.KeySize, problem.ValueSize, problem.Element);
        return (usesHopper
            ? AttentionBackwardTile.Hopper(keySize, valueSize, element, hasOptions)
            : AttentionBackwardTile.Portable(keySize, valueSize, element, hasOptions, vector, target), vector);
    }

    private static AttentionBackwardParameters.Hopper Maps(
        AttentionProblem problem, AttentionBackwardTile tile, in AttentionBackwardParameters.Backward call)
    {
        TensorMap QueryMap(TensorView view, int size, int columns) => AttentionForwardKernels.Map(
            problem, view, problem.QueryTime, problem.Heads, size, columns, tile.QueryRows);
        TensorMap KeyMap(TensorView view, int size, int columns) => AttentionForwardKernels.Map(
            problem, view, problem.KeyTime, problem.KvHeads, size, columns, tile.KeyRows);
        return new()
        {
            Q = QueryMap(call.Q, problem.KeySize, tile.Keys),
            K = KeyMap(call.K, problem.KeySize, tile.Keys),
            V = KeyMap(call.V, problem.ValueSize, tile.Values),
            GradOutput = QueryMap(call.GradOutput, problem.ValueSize, tile.Values),
            Call = call,
        };
    }

    private static KernelVariant Variant(AttentionBackwardTile tile, Pass pass, int vector) =>
        s_variants.GetOrAdd((tile, pass, vector), static key => key.Item2 switch
        {
            Pass.Delta => key.Item1.Delta(key.Item3),
            Pass.Queries => key.Item1.Queries(key.Item3),
            Pass.Sinks => AttentionBackwardTile.Sinks(),
            _ => key.Item1.Main(key.Item3),
        });

    /// <summary>Where the parts of the workspace begin, and where it ends.</summary>
    private readonly record struct Workspace(nint Logs, nint Deltas, nint Sums, nint Turns, nint Sinks, long Bytes)
    {
        public static Workspace Of(AttentionProblem problem, nint start)
        {
            var ownBlocks = (long)problem.Queries.Count * CeilingOf(problem.Queries.Length, AttentionBackwardTile.QueryBlock);
            var packedBlocks = problem.QueryTime / AttentionBackwardTile.QueryBlock + (long)problem.Queries.Count; // with gaps
            var blocks = (problem.Queries.Offsets == 0 ? ownBlocks : packedBlocks) * problem.Heads;
            var end = (long)start;
            nint Part(long bytes)
            {
                var begin = end;
                end += (bytes + Alignment - 1) / Alignment * Alignment;
                return checked((nint)begin);
            }

            var rows = blocks * AttentionBackwardTile.QueryBlock * sizeof(float);
            return new(Part(rows), Part(rows), Part(rows * AttentionBackwardTile.MostKeys(problem.KeySize)),
                Part(rows / AttentionBackwardTile.FewestQueryRows), Part(blocks * sizeof(float)), end - start);
        }
    }
}
