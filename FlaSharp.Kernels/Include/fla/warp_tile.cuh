// Products [ROWS x COLS] of all warps of a block, each of which holds a rectangle of it as accumulators.
#pragma once
#include "fla/lanes.cuh"
#include "fla/shared_tile.cuh"

namespace fla {

// Numbers in float32 that leave accumulators and are read along rows: 32-byte pieces exchanged between rows, so that both ways
// touch every bank equally.
template <int ROWS, int COLS> struct FloatTile {
    static constexpr int BYTES = ROWS * COLS * 4, PIECES = COLS / 8;
    u32 base;

    __device__ __forceinline__ explicit FloatTile(u32 address) : base(address) {}

    __device__ __forceinline__ u32 at(int row, int col) const {
        return base + row * (COLS * 4) + (((col >> 3) ^ key(row)) << 5) + (col & 7) * 4;
    }
    // As of SharedTile, down a column.
    static __device__ __forceinline__ u32 step(u32 address, int row) { return (address ^ (key(row) << 5)) + row * (COLS * 4); }

    static __device__ __forceinline__ int key(int row) { return row & (PIECES < 8 ? PIECES - 1 : 7); }
};

// Wide rectangles need the fewest operand loads; narrow products leave no choice, the smallest ones leave warps without work.
constexpr int row_warps(int rows, int cols, int warps) { return cols >= 16 * (warps / 2) ? 2 : rows / 16; }

// Fragment is what an operand is in a warp's registers, of numbers of type T. With as many ROW_WARPS as warps the accumulators
// are those of Hopper's products.
template <int ROWS, int COLS, int WARPS, class Fragment = u32[4], class T = bf16, int ROW_WARPS_ = row_warps(ROWS, COLS, WARPS)>
struct WarpTile {
    static constexpr int ROW_WARPS = ROW_WARPS_,
                         COL_WARPS = WARPS / ROW_WARPS < COLS / 16 ? WARPS / ROW_WARPS : COLS / 16;
    static constexpr int ROW_TILES = ROWS / 16 / ROW_WARPS, COL_TILES = COLS / 16 / COL_WARPS;

    float sum[ROW_TILES][2 * COL_TILES][4];
    int row, col, lane; // of the rectangle's first element; the thread's lane

    __device__ __forceinline__ WarpTile(int warp, int lane)
        : sum{}, row(warp / COL_WARPS * ROW_TILES * 16), col(warp % COL_WARPS * COL_TILES * 16), lane(lane) {}

    __device__ __forceinline__ bool exists() const { return row < ROWS; }

    // Adds x y with x [ROWS x DEPTH] and y [DEPTH x COLS]: left(a, row, k) and right(b, k, col) load the 16 x 16 operands there.
    template <int DEPTH, class Left, class Right> __device__ __forceinline__ void add(Left left, Right right) {
        if (!exists()) return;
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            Fragment a[ROW_TILES], b[COL_TILES]; // all loads before the first use: they take longer than a product
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) left(a[m], row + m * 16, k);
#pragma unroll
            for (int n = 0; n < COL_TILES; n++) right(b[n], k, col + n * 16);
#pragma unroll
            for (int n = 0; n < COL_TILES; n++)
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) mma_16x16<T>(sum[m][2 * n], sum[m][2 * n + 1], a[m], b[n]);
        }
    }

    // Visits pairs of neighbouring columns: visit(row, column, the two accumulators).
    template <class Visit> __device__ __forceinline__ void visit(Visit visit) {
        if (!exists()) return;
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < 2 * COL_TILES; n++)
#pragma unroll
                for (int h = 0; h < 2; h++)
                    visit(row + m * 16 + h * 8 + lane / 4, col + n * 8 + lane % 4 * 2, sum[m][n][2 * h], sum[m][n][2 * h + 1]);
    }
};

} // namespace fla
