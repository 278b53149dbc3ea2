using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Ssd;

/// <summary>The state space duality step by step, on a GPU: the launch of Ssd/recurrence.cu.</summary>
internal sealed class SsdRecurrenceKernel(GpuDevice device)
{
    /// <summary>The largest N.</summary>
    public const int MaxStateSize = 256;

    private const int Threads = 128;
    private const int WarpSize = 32;
    private const int Rows = 4; // channels of a warp
    private const int FloatsOfVector = 4;

    public required SequenceLayout Sequences { get; init; }

    /// <summary>H.</summary>
    public required int Heads { get; init; }

    /// <summary>G.</summary>
    public required int Groups { get; init; }

    /// <summary>P.</summary>
    public required int HeadSize { get; init; }

    /// <summary>N.</summary>
    public required int StateSize { get; init; }

    /// <summary>Of x, b, c, z and y.</summary>
    public required ElementType Element { get; init; }

    /// <summary>Of dt.</summary>
    public required ElementType Step { get; init; }

    public required SsdStepRule Rule { get; init; }

    /// <summary>float32 D, or 0.</summary>
    public required nint Direct { get; init; }

    /// <summary>Whether D is [H, P], and not [H].</summary>
    public required bool DirectPerChannel { get; init; }

    /// <summary>Kernels that stand for all.</summary>
    /// <param name="target">All have the same.</param>
    public static IEnumerable<KernelVariant> Variants(CompilerTarget target)
    {
        foreach (var stateSize in new[] { 16, 64, 127, 128, MaxStateSize })
            yield return Variant(stateSize, ElementType.BFloat16, ElementType.BFloat16);
        foreach (var element in ElementTypes.All)
            yield return Variant(128, element, ElementType.Float32);
    }

    /// <summary>y and the final state.</summary>
    /// <param name="x">[B, T, H, P].</param>
    /// <param name="dt">[B, T, H, 1].</param>
    /// <param name="b">[B, T, G, N].</param>
    /// <param name="c">[B, T, G, N].</param>
    /// <param name="z">[B, T, H, P], or none.</param>
    /// <param name="initialState">0 for zeros.</param>
    /// <param name="y">[B, T, H, P].</param>
    /// <param name="finalState">0 if unwanted; may be the initial one.</param>
    public void Run(TensorView x, TensorView dt, TensorView b, TensorView c, TensorView z, nint initialState, TensorView y,
        nint finalState)
    {
        const int Channels = Threads / WarpSize * Rows;
        var lines = checked(Sequences.Count * Heads);
        if (lines == 0)
            return;
        KernelLibrary.Get(device, Variant(StateSize, Element, Step)).Launch(
            (uint)lines, (uint)((HeadSize + Channels - 1) / Channels), 1, LaunchStream.Current, new SsdParameters.Recurrence
            {
                Sequences = Sequences,
                X = x,
                Dt = dt,
                B = b,
                C = c,
                Z = z,
                Y = y,
                Rule = Rule.Parameters,
                Direct = Direct,
                Initial = initialState,
                Final = finalState,
                Heads = Heads,
                Group = Heads / Groups,
                HeadSize = HeadSize,
                StateSize = StateSize,
                DirectHead = DirectPerChannel ? HeadSize : 1,
                DirectChannel = DirectPerChannel ? 1 : 0,
            });
    }

    private static KernelVariant Variant(int stateSize, ElementType element, ElementType step)
    {
        var tile = Math.Max(WarpSize, (int)System.Numerics.BitOperations.RoundUpToPowerOf2((uint)stateSize));
        var vector = tile / WarpSize >= FloatsOfVector && stateSize % FloatsOfVector == 0 ? FloatsOfVector : 1;
        return new KernelVariant("Ssd/recurrence.cu", "ssd_recurrence",
            [
                $"TYPE={element.Name()}", $"STEP_TYPE={step.Name()}", $"STATE_TILE={tile}", $"VECTOR={vector}", $"ROWS={Rows}",
                $"THREADS={Threads}",
            ],
            Threads, 0);
    }
}
