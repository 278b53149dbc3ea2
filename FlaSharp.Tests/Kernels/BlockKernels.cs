using FlaSharp.Kernels.Runtime;

namespace FlaSharp.Tests.Kernels;

/// <summary>Kernels that show what each building block in Include/fla does: those of Sources/Blocks.</summary>
internal static class BlockKernels
{
    private const int SharedBytes = 97 << 10; // every GPU has as many

    private static readonly KernelVariant[] s_portable =
    [
        SharedTile("tile_addresses", 64, 64),
        SharedTile("tile_copy", 64, 128),
        SharedTile("tile_copy", 64, 64, vector: 1),
        SharedTile("tile_to_bf16", 64, 64, ElementType.Float16),
        Matrices("matrix_products"),
        Matrices("matrix_products", ElementType.Float16),
        Matrices("chained_products"),
        Matrices("transposed_matrices"),
        WarpTile(64, 256, 16),
        TransposedState(64, 2),
        ChunkGates("gate_sums", 64, 128, 256),
        ChunkGates("gate_scale", 64, 128, 256),
        ChunkGates("gate_levels", 64, 128, 256),
        ChunkGates("gate_sums_to_end", 64, 128, 256),
        PairRows("pair_products", 32),
        PairRows("pair_sums", 32),
        PairRows("split_pairs", 32),
        Pipeline("pipeline", 3),
        Pipeline("named_barriers", 2),
        MbarrierPhases,
        Numbers("functions", ElementType.BFloat16),
        Numbers("conversions", ElementType.Float16),
        LineSums(64, 128),
        RowSums(64, 2, 4),
    ];

    private static readonly KernelVariant[] s_hopper =
    [
        .. new[] { 32, 64, 128, 256 }.Select(cols => WarpgroupProducts(cols, 32, inRegisters: false, false, rightTransposed: true)),
        WarpgroupProducts(256, 64, inRegisters: true, false, false),
        WarpgroupProducts(64, 16, inRegisters: false, leftTransposed: true, false),
        StoredMatrices,
        CopiedTiles(80, 128),
    ];

    /// <summary>Some of each.</summary>
    public static IEnumerable<KernelVariant> All(CompilerTarget target) =>
        target.IsHopper ? [.. s_portable, .. s_hopper] : s_portable;

    public static KernelVariant SharedTile(
        string entry, int rows, int cols, ElementType type = ElementType.BFloat16, int vector = 8) =>
        Variant("shared_tile", entry, 128, Type(type), $"TILE_ROWS={rows}", $"TILE_COLS={cols}", $"VECTOR={vector}");

    public static KernelVariant Matrices(string entry, ElementType type = ElementType.BFloat16) =>
        Variant("matrices", entry, 32, Type(type));

    public static KernelVariant WarpgroupProducts(
        int cols, int depth, bool inRegisters, bool leftTransposed, bool rightTransposed) =>
        WarpgroupProducts("warpgroup_products", 256, cols, depth, inRegisters, leftTransposed, rightTransposed);

    public static KernelVariant StoredMatrices => WarpgroupProducts("stored_matrices", 32, 32, 16, false, false, false);

    public static KernelVariant WarpTile(int rows, int cols, int depth) => Variant("warp_tile", "warp_tile_product", 256,
        $"PRODUCT_ROWS={rows}", $"PRODUCT_COLS={cols}", $"PRODUCT_DEPTH={depth}", "BLOCK_WARPS=8");

    public static KernelVariant TransposedState(int keys, int tiles) =>
        Variant("transposed_state", "state_update", 64, $"KEYS={keys}", $"TILES={tiles}");

    public static KernelVariant ChunkGates(
        string entry, int chunk, int keys, int threads, ElementType type = ElementType.BFloat16) =>
        Variant("chunk_gates", entry, threads, Type(type), $"CHUNK={chunk}", $"KEYS={keys}", $"BLOCK_THREADS={threads}");

    public static KernelVariant PairRows(string entry, int keys, ElementType type = ElementType.BFloat16, int threads = 128) =>
        Variant("pair_rows", entry, threads, Type(type), $"KEYS={keys}", $"BLOCK_THREADS={threads}");

    public static KernelVariant Pipeline(string entry, int stages) => Variant("pipeline", entry, 160, $"STAGES={stages}");

    public static KernelVariant MbarrierPhases => Variant("mbarrier", "mbarrier_phases", 160);

    public static KernelVariant CopiedTiles(int rows, int cols) =>
        Variant("tma", "copied_tiles", 128, $"TILE_ROWS={rows}", $"TILE_COLS={cols}");

    public static KernelVariant Numbers(string entry, ElementType type) => Variant("numbers", entry, 256, Type(type));

    public static KernelVariant LineSums(int lanes, int threads) =>
        Variant("line_sums", "line_sums", threads, $"LANES={lanes}", $"THREADS={threads}");

    public static KernelVariant RowSums(int rows, int threadColumns, int warps) => Variant("row_sums", "row_sums", 32 * warps,
        $"ROWS={rows}", $"THREAD_COLUMNS={threadColumns}", $"WARPS={warps}", "STEPS=8");

    private static KernelVariant WarpgroupProducts(
        string entry, int threads, int cols, int depth, bool inRegisters, bool leftTransposed, bool rightTransposed)
    {
        static int Flag(bool value) => value ? 1 : 0;
        return Variant("warpgroup_products", entry, threads, $"PRODUCT_COLS={cols}", $"PRODUCT_DEPTH={depth}",
            $"LEFT_REGISTERS={Flag(inRegisters)}", $"LEFT_TRANSPOSED={Flag(leftTransposed)}",
            $"RIGHT_TRANSPOSED={Flag(rightTransposed)}");
    }

    private static string Type(ElementType type) => $"TYPE={type.Name()}";

    private static KernelVariant Variant(string source, string entry, int threads, params string[] defines) =>
        new($"Blocks/{source}.cu", entry, defines, threads, SharedBytes);
}
