using System.Numerics;
using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Kernels.Gla;

/// <summary>The cut of a state for the kernels Gla/recurrent_*.cu: the constants of fla/recurrence.cuh.</summary>
/// <param name="Rows">The size that is summed over (K forward, V backward), rounded up.</param>
/// <param name="ThreadColumns">Columns of the state for each thread.</param>
/// <param name="Warps">Warps of a block.</param>
/// <param name="Steps">Steps in shared memory at once.</param>
/// <param name="Tiles">Forward: tiles on their way.</param>
internal sealed record GlaRecurrentTile(int Rows, int ThreadColumns, int Warps, int Steps = 16, int Tiles = 2)
{
    /// <summary>Sizes up to this one have a tile.</summary>
    public const int MaxSize = 512;

    private const int RowSourceBytes = 16;
    private const int SharedBytesForTwoBlocks = 113 << 10; // on a multiprocessor of Hopper

    // A wide block reads least for its work; narrow ones are more.
    private static readonly GlaRecurrentTile[] s_wide =
        [new(16, 4, 4), new(32, 4, 4), new(64, 4, 4), new(128, 4, 8), new(256, 4, 8), new(512, 2, 8)];
    private static readonly GlaRecurrentTile[] s_narrow =
        [new(16, 2, 1), new(32, 2, 1), new(64, 2, 4), new(128, 2, 4), new(256, 2, 4), new(512, 2, 4)];

    /// <summary>Every tile, before it is fitted to a GPU's memory.</summary>
    public static IEnumerable<GlaRecurrentTile> All => s_wide.Concat(s_narrow);

    public int Threads => 32 * Warps;

    /// <summary>Columns of the state for each block.</summary>
    public int Columns
    {
        get
        {
            var threadRows = Rows <= 16 ? 4 : Rows <= 128 ? 8 : Rows / 16;
            return Warps * (32 * threadRows / Rows) * ThreadColumns;
        }
    }

    private int Frames => Math.Max(1, Steps / 8);

    /// <summary>
    /// Wide blocks where they keep at least half of the GPU busy, and a state has more columns than a narrow block.
    /// </summary>
    /// <param name="summed">The size that is summed over.</param>
    /// <param name="columns">The other one.</param>
    /// <param name="lines">Sequences times heads.</param>
    /// <param name="multiprocessors">Of the GPU.</param>
    public static GlaRecurrentTile Of(int summed, int columns, int lines, int multiprocessors)
    {
        var size = Math.Max(0, BitOperations.Log2((uint)(summed - 1)) - 3);
        var (wide, narrow) = (s_wide[size], s_narrow[size]);
        return columns > narrow.Columns && 2L * lines * wide.Blocks(columns) > multiprocessors ? wide : narrow;
    }

    /// <summary>Blocks that it takes to cover a state's columns.</summary>
    public int Blocks(int columns) => (columns + Columns - 1) / Columns;

    /// <summary>The forward kernel with this tile, its steps as many as leave room for a second block.</summary>
    public KernelVariant Forward(ElementType element, ElementType gate, CompilerTarget target)
    {
        var tile = Fit(Math.Min(target.MaxSharedBytes, SharedBytesForTwoBlocks), tile => tile.ForwardBytes(element, gate));
        return tile.Variant("forward", tile.ForwardBytes(element, gate), element, gate, $"TILES={tile.Tiles}");
    }

    /// <summary>A pass of the backward kernel with this tile.</summary>
    public KernelVariant Backward(ElementType element, ElementType gate, bool late, int savedSteps, CompilerTarget target)
    {
        var tile = Fit(target.MaxSharedBytes, tile => tile.BackwardBytes(element, gate, late: true)); // the passes agree on Steps
        return tile.Variant("backward", tile.BackwardBytes(element, gate, late), element, gate,
            $"LATE={(late ? 1 : 0)}", $"SAVED_STEPS={savedSteps}");
    }

    private GlaRecurrentTile Fit(int limit, Func<GlaRecurrentTile, int> bytes)
    {
        GlaRecurrentTile[] tiles = [this, this with { Steps = 8 }, this with { Steps = 4 }, this with { Steps = 4, Tiles = 1 }];
        return tiles.First(tile => bytes(tile) <= limit);
    }

    private KernelVariant Variant(string pass, int sharedBytes, ElementType element, ElementType gate, params string[] defines) =>
        new($"Gla/recurrent_{pass}.cu", $"gla_recurrent_{pass}",
            [
                $"ROWS={Rows}", $"THREAD_COLUMNS={ThreadColumns}", $"WARPS={Warps}", $"STEPS={Steps}",
                $"SHARED_BYTES={sharedBytes}", $"ELEMENT={element.Name()}", $"GATE={gate.Name()}", .. defines,
            ],
            Threads, sharedBytes);

    // sizeof(Shared) of recurrent_forward.cu; it asserts that.
    private int ForwardBytes(ElementType element, ElementType gate)
    {
        var tile = Steps * ((2 * Rows + Columns) * element.Bytes() + Rows * gate.Bytes());
        var prepared = sizeof(float) * (Steps * (3 * Rows + Columns) + Frames * Rows);
        return 4 * RowSourceBytes + Tiles * tile + 2 * prepared;
    }

    // And of recurrent_backward.cu.
    private int BackwardBytes(ElementType element, ElementType gate, bool late)
    {
        var product = sizeof(float) * (late ? Steps * Columns : 4);
        var tile = Steps * (2 * (Rows + Columns) * element.Bytes() + Columns * gate.Bytes()) + product;
        var prepared = sizeof(float) * (Steps * (2 * Rows + 1 + 4 * Columns) + Frames * Columns) + product;
        return 6 * RowSourceBytes + 2 * (tile + prepared);
    }
}
