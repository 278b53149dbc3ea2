using System.Collections.Concurrent;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>Softmax attention, forward, on a GPU: the launches of Attention/*_forward.cu.</summary>
internal sealed class AttentionForwardKernels
{
    private const int BoxColumns = 64; // of a copy by Hopper's engine

    // Measured on an H200.
    private const int LongQueries = 4096; // of a sequence
    private const int BusyRows = 1024;    // of a multiprocessor, which then has several blocks

    private static readonly ConcurrentDictionary<(AttentionTile, int), KernelVariant> s_variants = new();

    /// <summary>Whether Hopper's kernel is left aside where it could run.</summary>
    public bool IsPortable { get; init; }

    /// <summary>Why there is no kernel for a call; null if there is one.</summary>
    /// <param name="keySize">K.</param>
    /// <param name="valueSize">V.</param>
    /// <param name="element">Of q, k, v and o.</param>
    /// <param name="target">The GPU's.</param>
    public static string? Unfit(int keySize, int valueSize, ElementType element, CompilerTarget target) =>
        element == ElementType.Float32 ? "The kernels of attention take bfloat16 and float16."
        : Math.Max(keySize, valueSize) > AttentionTile.MaxSize
            ? $"K = {keySize}, V = {valueSize}: the kernels of attention take up to {AttentionTile.MaxSize} on {target}."
        : null;

    /// <summary>Kernels that stand for all.</summary>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        const ElementType BFloat16 = ElementType.BFloat16, Float16 = ElementType.Float16;
        if (target.IsHopper)
        {
            foreach (var (keys, values) in new[] { (32, 32), (64, 64), (128, 128), (256, 256), (64, 256), (256, 64) })
                foreach (var hasOptions in new[] { false, true })
                    yield return Variant(AttentionTile.Choose(keys, values, BFloat16, hasOptions, true), TensorView.MostVector);
            yield return Variant(AttentionTile.Choose(64, 64, BFloat16, false, true, isLong: true), TensorView.MostVector);
            yield return Variant(AttentionTile.Choose(128, 128, Float16, true, true), TensorView.MostVector);
        }
        (int keys, int values, ElementType element, bool hasOptions, int vector)[] cases =
        [
            (32, 32, BFloat16, true, 1), (64, 64, Float16, true, 2),
            (128, 128, BFloat16, false, 8), (128, 128, BFloat16, true, 1),
            (256, 256, BFloat16, false, 8), (256, 256, BFloat16, true, 1), (256, 256, Float16, true, 8),
        ];
        foreach (var (keys, values, element, hasOptions, vector) in cases)
            yield return Variant(AttentionTile.Choose(keys, values, element, hasOptions, false), vector);
    }

    /// <summary>o, and the logarithms of its denominators.</summary>
    /// <param name="problem">The call.</param>
    /// <param name="q">[B, Tq, H, K].</param>
    /// <param name="k">[B, Tk, Hkv, K].</param>
    /// <param name="v">[B, Tk, Hkv, V].</param>
    /// <param name="o">[B, Tq, H, V].</param>
    /// <param name="logSumExp">
    /// float32 [B, H, Tq], of packed sequences [1, H, Tq]: of a row's scores and sink, minus infinity where there is none; 0 if
    /// unwanted.
    /// </param>
    public void Forward(AttentionProblem problem, TensorView q, TensorView k, TensorView v, TensorView o, nint logSumExp)
    {
        var usesHopper = !IsPortable && FitsHopper(problem, q, k, v, o);
        var tile = AttentionTile.Choose(
            problem.KeySize, problem.ValueSize, problem.Element, problem.HasOptions, usesHopper, IsLong(problem));
        var call = Call(problem, tile, o, logSumExp);
        if (call.Tiles == 0)
            return;
        if (usesHopper)
        {
            var blocks = tile.IsPersistent
                ? Math.Min(call.Tiles, tile.HopperBlocks * problem.Device.Info.MultiprocessorCount)
                : call.Tiles;
            var schedule = AttentionSchedule.Choose(problem, tile, call.Section, blocks);
            (call.Section, call.TurnsBack) = (schedule.Section, schedule.TurnsBack ? 1 : 0);
            Launch(problem.Device, Variant(tile, TensorView.MostVector), blocks, new AttentionParameters.HopperForward
            {
                Q = Map(problem, q, problem.QueryTime, problem.Heads, problem.KeySize, tile.Keys, tile.QueryRows),
                K = Map(problem, k, problem.KeyTime, problem.KvHeads, problem.KeySize, tile.Keys, tile.KeyRows),
                V = Map(problem, v, problem.KeyTime, problem.KvHeads, problem.ValueSize, tile.Values, tile.KeyRows),
                Call = call,
            });
            return;
        }
        var vector = TensorView.Vector(problem.Element, problem.KeySize | problem.ValueSize, q, k, v, o);
        Launch(problem.Device, Variant(tile, vector), call.Tiles,
            new AttentionParameters.PortableForward { Q = q, K = k, V = v, Call = call });
    }

    /// <summary>See <see cref="AttentionTile.IsLong"/>.</summary>
    private static bool IsLong(AttentionProblem problem)
    {
        var queries = problem.Queries;
        return queries.Offsets == 0 && queries.Length >= LongQueries
            && (long)queries.Length * queries.Count * problem.Heads >= BusyRows * (long)problem.Device.Info.MultiprocessorCount;
    }

    private static KernelVariant Variant(AttentionTile tile, int vector) =>
        s_variants.GetOrAdd((tile, vector), static key => key.Item1.Forward(key.Item2));

    private static void Launch<TParameters>(GpuDevice device, KernelVariant variant, int blocks, in TParameters parameters)
        where TParameters : unmanaged =>
        KernelLibrary.Get(device, variant).Launch((uint)blocks, 1, 1, LaunchStream.Current, parameters);

    /// <summary>Whether Hopper's copy engine can bring the inputs, and the output takes whole 16 bytes.</summary>
    private static bool FitsHopper(AttentionProblem problem, TensorView q, TensorView k, TensorView v, TensorView o)
    {
        bool IsAligned(TensorView view) => view.Multiples(problem.Element) % TensorView.MostVector == 0;
        bool FitsEngine(TensorView view) => IsAligned(view) && view is { Batch: >= 0, Time: >= 0, Head: >= 0 };
        return problem.Device.Target!.IsHopper && problem.ValueSize % TensorView.MostVector == 0 && problem.KeyTime > 0
            && FitsEngine(q) && FitsEngine(k) && FitsEngine(v) && IsAligned(o);
    }

    private static AttentionParameters.Call Call(AttentionProblem problem, AttentionTile tile, TensorView o, nint logSumExp)
    {
        var blocks = (problem.Queries.Length + tile.QueryRows - 1) / tile.QueryRows;
        var lines = checked(problem.Queries.Count * problem.Heads);
        // Blocks that read the same keys and values run while these are in the L2 cache.
        var lineBytes = Math.Max(1, (long)problem.Keys.Length * (problem.KeySize + problem.ValueSize) * problem.Element.Bytes());
        var section = Math.Max(1, problem.Device.Info.L2Bytes / 8L * 5 / lineBytes) * (problem.Heads / problem.KvHeads);
        return new()
        {
            Shape = AttentionParameters.Shape.Of(problem),
            O = o,
            LogSumExp = logSumExp,
            Time = problem.QueryTime,
            Blocks = blocks,
            Section = (int)Math.Min(section, lines),
            Tiles = checked(blocks * lines),
        };
    }

    internal static TensorMap Map(AttentionProblem problem, TensorView view, int time, int heads, int size, int tile, int rows)
    {
        var batch = problem.Queries.Offsets == 0 ? problem.Queries.Count : 1;
        return new MappedTensor(view, problem.Element, batch, time, heads, size, Math.Min(BoxColumns, tile), rows).Map();
    }
}
