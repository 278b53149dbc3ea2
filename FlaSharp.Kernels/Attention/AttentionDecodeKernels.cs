using System.Collections.Concurrent;
using System.Runtime.InteropServices;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Attention;

/// <summary>
/// Causal softmax attention of a few queries over the keys of a cache [B, capacity, Hkv, *], whose rows may differ in length: the
/// launches of Attention/decode.cu and decode_join.cu. Row b's key i lies at place i % capacity.
/// </summary>
internal sealed class AttentionDecodeKernels(AttentionProblem problem)
{
    private const int MinRun = AttentionDecodeTile.Step;

    private static readonly ConcurrentDictionary<AttentionDecodeTile, Passes> s_variants = new();

    /// <summary>Of the cache.</summary>
    public required int Capacity { get; init; }

    /// <summary>Keys of each row, the last of them aligned with its last query; on the CPU too, to cut the work.</summary>
    public required IReadOnlyList<int> Lengths { get; init; }

    /// <summary>int32 [B]: the same on the device.</summary>
    public required nint LengthsOnDevice { get; init; }

    /// <summary>Keys of a run, which one block takes; null for as many as keep the GPU busy.</summary>
    public int? Run { get; init; }

    /// <summary>Kernels that stand for all.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target) =>
        AttentionDecodeTile.Representatives.SelectMany(tile => new[] { tile.Decode(), tile.Join() });

    /// <param name="q">[B, Tq, H, K], or packed as the problem says.</param>
    /// <param name="keys">[B, capacity, Hkv, K]; only the places of keys that are seen are read.</param>
    /// <param name="values">[B, capacity, Hkv, V].</param>
    /// <param name="o">[B, Tq, H, V], or packed.</param>
    /// <param name="makeParts">Gives memory for so many float32 numbers, where the keys are cut into runs.</param>
    public void Attend(TensorView q, TensorView keys, TensorView values, TensorView o, Func<long, nint> makeParts)
    {
        var group = problem.Heads / problem.KvHeads;
        var rows = problem.Queries.Length * group;
        var (type, vector) = (problem.Element, AttentionDecodeTile.Vector);
        var multiples = (uint)(problem.KeySize | problem.ValueSize) | q.Multiples(type) | keys.Multiples(type)
            | values.Multiples(type);
        var tile = AttentionDecodeTile.Of(type, problem.KeySize, problem.ValueSize, rows, multiples % vector == 0);
        var tiles = (rows + tile.Rows - 1) / tile.Rows;
        var run = Run ?? ChooseRun(tile, tiles);
        var splits = Math.Max(1, (Lengths.Max(Seen) + run - 1) / run);
        var shape = new DecodeShape(problem.Queries, LengthsOnDevice, problem.KvHeads, group, problem.ValueSize, problem.Window,
            run, splits, tiles, problem.Sinks);

        var blocks = (long)Lengths.Count * problem.KvHeads * tiles;
        var (parts, weights) = ((nint)0, (nint)0);
        if (splits > 1)
        {
            weights = makeParts(blocks * splits * tile.Rows * (problem.ValueSize + 2));
            parts = weights + (nint)(blocks * splits * tile.Rows * 2 * sizeof(float));
        }
        var passes = s_variants.GetOrAdd(tile, static tile => new Passes(tile.Decode(), tile.Join()));
        Launch(passes.Decode, blocks * splits, new DecodeParameters
        {
            Shape = shape,
            Q = q,
            O = o,
            Keys = keys,
            Values = values,
            Capacity = Capacity,
            KeySize = problem.KeySize,
            Scale = problem.Scale,
            Softcap = problem.Softcap,
            Slopes = problem.AlibiSlopes,
            Parts = parts,
            Weights = weights,
        });
        if (splits > 1)
            Launch(passes.Join, blocks * tile.Rows, new JoinParameters
            {
                Shape = shape,
                O = o,
                Parts = parts,
                Weights = weights,
            }, startsEarly: true);
    }

    /// <summary>Keys that a row's queries see, of any length of theirs.</summary>
    private int Seen(int length) =>
        problem.Window == 0 ? length : (int)Math.Min(length, (long)problem.Window + problem.Queries.Length - 1);

    private int ChooseRun(AttentionDecodeTile tile, int tiles)
    {
        var keys = Lengths.Sum(length => (long)Seen(length)) * problem.KvHeads * tiles;
        var blocks = (long)problem.Device.Info.MultiprocessorCount * tile.BlocksPerMultiprocessor;
        var steps = (keys / blocks + AttentionDecodeTile.Step - 1) / AttentionDecodeTile.Step;
        return (int)Math.Clamp(steps * AttentionDecodeTile.Step, MinRun, int.MaxValue / 2 / MinRun * MinRun);
    }

    private void Launch<TParameters>(KernelVariant variant, long blocks, in TParameters parameters, bool startsEarly = false)
        where TParameters : unmanaged =>
        KernelLibrary.Get(problem.Device, variant).Launch(
            checked((uint)blocks), 1, 1, LaunchStream.Current, parameters, startsEarly);

    private sealed record Passes(KernelVariant Decode, KernelVariant Join);

    /// <summary>fla::DecodeShape.</summary>
    private readonly record struct DecodeShape(SequenceLayout Queries, nint Lengths, int KvHeads, int Group, int ValueSize,
        int Window, int Run, int Splits, int Tiles, nint Sinks);

    /// <summary>AttentionDecode of decode.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct DecodeParameters
    {
        public DecodeShape Shape;
        public TensorView Q;
        public TensorView O;
        public TensorView Keys;
        public TensorView Values;
        public int Capacity;
        public int KeySize;
        public float Scale;
        public float Softcap;
        public nint Slopes;
        public nint Parts;
        public nint Weights;
    }

    /// <summary>AttentionDecodeJoin of decode_join.cu.</summary>
    [StructLayout(LayoutKind.Sequential)]
    private struct JoinParameters
    {
        public DecodeShape Shape;
        public TensorView O;
        public nint Parts;
        public nint Weights;
    }
}
