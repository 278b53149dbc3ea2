// What the forward kernels of gated linear attention over chunks share.
#pragma once
#include "fla/gla.cuh"
#include "fla/shared_tile.cuh"

namespace fla {

struct GlaChunkForward {
    GlaShape shape;
    TensorView q, k, v, g, o;
    const float* initial; // [sequences, H, segments, K, V], or null for 0
    float* final;         // [sequences, H, K, V], or null
    // For backward: the scaled state every SAVED_TOKENS, [slots, H, V / 8, TERMS, K / 8] blocks of 8 x 8; or null.
    bf16* states;
    int* plain;           // tells which of these are not scaled, [slots, H]
    float scale;
};

// Writes a group of four warps' output, [C x 64], which they hold transposed: a warp 16 value channels, those from `row` on of
// the tile; `value` is the channel of its first column in the tensor. sync() joins the group.
template <int VEC, int C, class Tile, class Sync>
__device__ __forceinline__ void store_transposed(const float (&out)[C / 8][4], const Tile& tile, int row,
                                                 const Rows<typename Tile::Element>& o, int token, int rows, int value,
                                                 int value_size, int lane, Sync sync) {
    typedef typename Tile::Element T;
#pragma unroll
    for (int t = 0; t < C; t += 16) {
        u32 pairs[4];
#pragma unroll
        for (int e = 0; e < 4; e++) pairs[e] = Pair<T>::pack(out[t / 8 + e / 2][e % 2 * 2], out[t / 8 + e / 2][e % 2 * 2 + 1]);
        stmatrix_x4_trans(tile.at(t + lane / 16 * 8 + lane % 8, row + (lane & 8)), pairs);
    }
    sync();
    constexpr int ROWS = C / 4; // for each warp: whole lines
    typedef SharedTile<T, ROWS, Tile::PANEL> Lines;
    int first = row / 64 * 64, warp = row / 16 % 4;
    Lines lines(tile.base + first / 64 * (C * Lines::PITCH) + warp * Lines::BYTES);
    store_tile<VEC, 64>(lines, 0, o, token + warp * ROWS, rows - warp * ROWS, value + first, value_size, lane);
}

} // namespace fla
