// Products between the rows of a chunk, one number for each pair of tokens.
#pragma once
#include "fla/gate_frame.cuh"

namespace fla {

// A warp's part of a C x C product of pairs i >= j: 16 rows, and all columns or, of more warps than there are rows for, a part of
// them.
template <int C, int WARPS> struct PairRows {
    static constexpr int DOWN = C / 16, ACROSS = WARPS / DOWN < DOWN ? WARPS / DOWN : DOWN, BLOCKS = DOWN / ACROSS;
    static constexpr bool SPARE = WARPS > DOWN * ACROSS; // warps without a part
    static_assert(WARPS >= DOWN && BLOCKS * ACROSS == DOWN);
    float sum[BLOCKS][2][4];
    int block, first, lane; // of the rows; of the columns

    __device__ __forceinline__ PairRows(int warp, int lane)
        : sum{}, block(warp % DOWN), first(warp / DOWN * BLOCKS), lane(lane) {}

    __device__ __forceinline__ bool exist() const { return first < DOWN; }
    // Whether there are pairs i >= j among them.
    __device__ __forceinline__ bool matter() const { return first <= block; }

    // The place of element `e` of block `j`.
    __device__ __forceinline__ int row(int e) const { return block * 16 + lane / 4 + e % 4 / 2 * 8; }
    __device__ __forceinline__ int col(int j, int e) const { return (first + j) * 16 + e / 4 * 8 + lane % 4 * 2 + e % 2; }

    // x y^T, all its columns: branches that leave out single blocks beyond the diagonal would cost more.
    template <class Tile> __device__ __forceinline__ void multiply(const Tile& x, const Tile& y) {
        if (matter()) multiply_all(x, y);
    }
    // The same where pairs i < j matter too.
    template <class Tile> __device__ __forceinline__ void multiply_all(const Tile& x, const Tile& y) {
#pragma unroll
        for (int k = 0; k < Tile::COLS; k += 16) {
            typename Tile::Fragment a, b[BLOCKS];
            load_left(a, x, block * 16, k, lane);
#pragma unroll
            for (int j = 0; j < BLOCKS; j++) load_right_transposed(b[j], y, (first + j) * 16, k, lane);
#pragma unroll
            for (int j = 0; j < BLOCKS; j++) mma_16x16(sum[j][0], sum[j][1], a, b[j]);
        }
    }

    // Adds factor * x y^T where keep(i, j), in the blocks with has(block, j). Slower than the above, with fewer registers.
    template <class Operand, class Tile, class Has, class Keep>
    __device__ __forceinline__ void add(const Tile& x, const Tile& y, float factor, Has has, Keep keep) {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++) {
            if (!has(block, first + j)) continue;
            float product[2][4] = {};
#pragma unroll 4
            for (int k = 0; k < Tile::COLS; k += 16) {
                typename Tile::Fragment a, b;
                load_left(a, x, block * 16, k, lane);
                load_right_transposed(b, y, (first + j) * 16, k, lane);
                mma_16x16<Operand>(product[0], product[1], a, b);
            }
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (keep(row(e), col(j, e))) sum[j][e / 4][e % 4] += factor * product[e / 4][e % 4];
        }
    }

    // Adds factor * x y^T for the pairs (t, t), from float32 numbers as they are loaded: two lanes share a row.
    template <class Tile> __device__ __forceinline__ void add_diagonal(const Tile& x, const Tile& y, float factor) {
        float product = 0.f;
#pragma unroll 4
        for (int k = lane % 2 * 4; k < Tile::COLS; k += 8) {
            float4 a = shared_load<float4>(x.at(block * 16 + lane / 2, k));
            float4 b = shared_load<float4>(y.at(block * 16 + lane / 2, k));
            product += a.x * b.x + a.y * b.y + a.z * b.z + a.w * b.w;
        }
        product += __shfl_xor_sync(~0u, product, 1);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float of_row = __shfl_sync(~0u, product, row(e) % 16 * 2);
#pragma unroll
            for (int j = 0; j < BLOCKS; j++)
                if (row(e) == col(j, e)) sum[j][e / 4][e % 4] += factor * of_row;
        }
    }

    template <class Keep> __device__ __forceinline__ void mask(Keep keep) {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (!keep(row(e), col(j, e))) sum[j][e / 4][e % 4] = 0.f;
    }

    // The pairs (t, t), to C numbers in shared memory.
    __device__ __forceinline__ void store_diagonal(u32 memory) const {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (row(e) == col(j, e)) shared_store(memory + row(e) * 4, sum[j][e / 4][e % 4]);
    }

    template <class Tile> __device__ __forceinline__ void store(const Tile& tile) const {
#pragma unroll
        for (int j = 0; j < BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                tile.store(tile.operand_at(row(e % 2 * 2), col(j, e / 2 * 4)), sum[j][e / 2][e % 2 * 2],
                           sum[j][e / 2][e % 2 * 2 + 1]);
    }
};

// The level of binary splitting at which a pair of tokens is apart: half the size of its block.
__device__ __forceinline__ bool apart(int i, int j, int half) { return ((i ^ j) & -half) == half; }
// Whether blocks of 16 tokens hold such pairs.
__device__ __forceinline__ bool blocks_apart(int i, int j, int half) { return half < 16 ? i == j : apart(i, j, half / 16); }

// Adds to `pairs` the products of q and k under decays of any strength. `split` is scratch memory, which may still be read by the
// threads that `sync` joins.
template <class T, int C, int WARPS, int K, int THREADS, class Tile, class Sync>
__device__ __forceinline__ void add_split_pairs(PairRows<C, WARPS>& pairs, const ChunkGates<C, K, THREADS>& gates,
                                                const Tile& q, const Tile& k, const Tile& split, float scale,
                                                const typename ChunkGates<C, K, THREADS>::Totals& totals, Sync sync) {
    if (pairs.exist()) {
        if constexpr (sizeof(T) == 4)
            pairs.add_diagonal(q, k, scale);
        else
            pairs.template add<T>(q, k, scale, [](int i, int j) { return i == j; }, [](int i, int j) { return i == j; });
    }
#pragma unroll 1
    for (int half = C / 2; half > 0; half /= 2) {
        sync();
        gates.template split<T>(split, q, k, half, scale, totals);
        sync();
        if (pairs.exist())
            pairs.template add<bf16>(split, split, 1.f, [half](int i, int j) { return j <= i && blocks_apart(i, j, half); },
                                     [half](int i, int j) { return j < i && apart(i, j, half); });
    }
}

} // namespace fla
