// What the forward kernels of gated linear attention over chunks share.
#pragma once
#include "fla/gate_frame.cuh"
#include "fla/gla.cuh"
#include "fla/pair_rows.cuh"
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

// Whether the state before chunk `n` of C tokens is saved.
template <class T, int C, class Block>
__device__ __forceinline__ bool saves(const GlaChunkForward& p, const Block& block, int n) {
    return p.states && (block.first + n) % (SAVED_TOKENS<T> / C) == 0;
}

// Where the queries of backward's chunk, which begins with a forward one of C tokens and may be two of these, have the factor 1.
template <class T, int C, class Gates> __device__ __forceinline__ const float (&middle_of_saved(const Gates& gates))[2] {
    static_assert(C == SAVED_TOKENS<T> || 2 * C == SAVED_TOKENS<T>);
    return C == SAVED_TOKENS<T> ? gates.middle : gates.end;
}

// Operands and A of a chunk whose decays are too strong for a frame.
template <class T, class G, int C, int PRODUCER_WARPS, class Pipeline, class Gates, class Chunk>
__device__ __forceinline__ void prepare_by_splitting(Chunk chunk, float scale) {
    int thread = opaque(threadIdx.x);
    Gates gates(thread);
    gates.sum_up([&](int row, int col) { return load_gates<G>(chunk.g(), row, col); });
    gates.join(chunk.totals());

    PairRows<C, PRODUCER_WARPS> pairs(thread / 32, thread % 32);
    add_split_pairs<T>(pairs, gates, chunk.q(), chunk.k(), chunk.split(), scale, chunk.totals(), Pipeline::sync_producers);
    if (pairs.exist()) pairs.store(chunk.pairs());
    float origin[2] = {0.f, 0.f};
    gates.template scale<T>(chunk.q(), 1.f, origin, scale);
    gates.template scale<T>(chunk.k(), -1.f, gates.end, 1.f);
}

// Whether a chunk's decays are too strong for a frame; and, if the state before it is saved, those of backward's chunk before its
// middle.
struct Strength {
    bool strong, saved_plain;
};

// Scales queries and keys of a loaded chunk, makes A, and finds its sums of log-decays. `pending` is the state's decay that is
// still to be applied.
template <class T, class G, int C, int PRODUCER_WARPS, class Pipeline, class Gates, class Chunk>
__device__ __forceinline__ Strength prepare_operands(Gates& gates, int thread, const Chunk& chunk, const float (&pending)[2],
                                                     float scale, bool saves) {
    gates.sum_up([&](int row, int col) { return load_gates<G>(chunk.g(), row, col); });
    gates.store_totals(chunk.totals());
    to_bf16<T, 32 * PRODUCER_WARPS>(chunk.v(), thread);
    Pipeline::sync_producers();
    gates.join(chunk.totals());
    // The way from the last frame to this one may be too far even if both are in range.
    auto too_far = [&](const float(&middle)[2]) {
        return gates.row == 0 && (pending[0] + middle[0] < -MAX_FACTOR || pending[1] + middle[1] < -MAX_FACTOR);
    };
    bool strong = Pipeline::any_producer(gates.too_strong() || too_far(gates.middle));
    const float(&saved_middle)[2] = middle_of_saved<T, C>(gates);
    bool saved_plain = saves && Pipeline::any_producer(gates.queries_too_strong(saved_middle) || too_far(saved_middle));

    if (strong) {
        prepare_by_splitting<T, G, C, PRODUCER_WARPS, Pipeline, Gates>(chunk, scale);
    } else {
        gates.template scale<T>(chunk.q(), 1.f, gates.middle, scale);
        gates.template scale<T>(chunk.k(), -1.f, gates.middle, 1.f);
        Pipeline::sync_producers();
        PairRows<C, PRODUCER_WARPS> pairs(thread / 32, thread % 32);
        if (pairs.exist()) {
            pairs.multiply(chunk.q(), chunk.k());
            pairs.mask([](int i, int j) { return j <= i; });
            pairs.store(chunk.pairs());
        }
    }
    return {strong, saved_plain};
}

// Adds to the outputs of a warp's 16 value channels, from `row` on, what token t has of itself and those before it, one of these
// after the other: add(output, t, j, value of j).
template <int BLOCKS, class Values, class Add>
__device__ __forceinline__ void add_one_by_one(float (&out)[BLOCKS][4], const Values& values, int row, int lane, Add add) {
#pragma unroll 1
    for (int j = 0; j < BLOCKS * 8; j++) {
        float v[2];
#pragma unroll
        for (int half = 0; half < 2; half++) v[half] = to_float(shared_load<bf16>(values.at(j, row + half * 8 + lane / 4)));
#pragma unroll
        for (int n = 0; n < BLOCKS; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = n * 8 + lane % 4 * 2 + e % 2;
                if (j <= t) add(out[n][e], t, j, v[e / 2]);
            }
    }
}

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
