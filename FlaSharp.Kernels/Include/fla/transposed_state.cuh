// The state of linear attention, transposed [V x K], in the accumulators of warps that own its rows.
#pragma once
#include "fla/terms.cuh"

namespace fla {

// Saved states are bfloat16, [V / 8, K / 8] blocks of 8 values x 8 keys: what a warp holds as a left operand leaves it in whole
// lines, and a block's row is what a matrix load wants. Second terms (terms.cuh) are as if they were K more keys. A lane's pair
// of the block at (value, key), as an index of pairs.
template <int K> __device__ __forceinline__ i64 saved_pair(int value, int key, int lane) {
    return ((i64)(value / 8) * (K / 8) + key / 8) * 32 + lane;
}

// ROW_TILES x 16 value channels, all K key channels of a tile.
template <int ROW_TILES, int K> struct TransposedState {
    float sum[ROW_TILES][K / 8][4];

    // Visits (the accumulator, whether it exists, its place in a state [key_size, value_size]); `value` is the first value
    // channel.
    template <class Visit>
    __device__ __forceinline__ void visit(int key_size, int value_size, int value, int lane, Visit visit) {
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int n = 0; n < K / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    int k = n * 8 + lane % 4 * 2 + e % 2, v = value + m * 16 + lane / 4 + e / 2 * 8;
                    visit(sum[m][n][e], k < key_size && v < value_size, (i64)k * value_size + v);
                }
    }

    __device__ __forceinline__ void load(const float* state, int key_size, int value_size, int value, int lane) {
        visit(key_size, value_size, value, lane,
              [=](float& x, bool exists, i64 place) { x = state && exists ? state[place] : 0.f; });
    }
    __device__ __forceinline__ void store(float* state, int key_size, int value_size, int value, int lane) {
        visit(key_size, value_size, value, lane, [=](float& x, bool exists, i64 place) {
            if (exists) state[place] = x;
        });
    }

    // Two neighbouring factors for accumulators of block `n`, from K factors in shared memory.
    static __device__ __forceinline__ float2 factor(u32 factors, int n, int lane) {
        return shared_load<float2>(factors + (n * 8 + lane % 4 * 2) * 4);
    }

    // S^T times a factor for each key channel.
    __device__ __forceinline__ void scale(u32 factors, int lane) {
#pragma unroll
        for (int n = 0; n < K / 8; n++) {
            float2 by = factor(factors, n, lane);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) {
                sum[m][n][0] *= by.x, sum[m][n][1] *= by.y;
                sum[m][n][2] *= by.x, sum[m][n][3] *= by.y;
            }
        }
    }

    // S^T times a factor for each key channel, as a saved state from the pair that `saved` points to.
    template <int TERMS = 1> __device__ __forceinline__ void save(u32* saved, u32 factors, int lane) const {
#pragma unroll
        for (int n = 0; n < K / 8; n++) {
            float2 by = factor(factors, n, lane);
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    visit_terms<TERMS>(sum[m][n][half * 2] * by.x, sum[m][n][half * 2 + 1] * by.y, [=](int t, u32 pair) {
                        saved[saved_pair<TERMS * K>(m * 16 + half * 8, t * K + n * 8, 0)] = pair;
                    });
        }
    }

    // S^T += y^T x for 16 rows of x [.. x K] from `row` on, with y^T given as left operands.
    template <class Tile>
    __device__ __forceinline__ void add(const typename Tile::Fragment (&y)[ROW_TILES], const Tile& x, int row, int lane) {
        constexpr int BATCH = K < 32 ? 1 : 2; // loads under way at once
#pragma unroll
        for (int k = 0; k < K; k += 16 * BATCH) {
            typename Tile::Fragment b[BATCH];
#pragma unroll
            for (int i = 0; i < BATCH; i++) load_right(b[i], x, row, k + i * 16, lane);
#pragma unroll
            for (int i = 0; i < BATCH; i++)
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) mma_16x16(sum[m][k / 8 + 2 * i], sum[m][k / 8 + 2 * i + 1], y[m], b[i]);
        }
    }
};

} // namespace fla
