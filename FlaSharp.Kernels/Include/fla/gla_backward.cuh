// What the kernels of gated linear attention's backward over chunks share.
#pragma once
#include "fla/gate_frame.cuh"
#include "fla/gla.cuh"

namespace fla {

struct GlaChunkBackward {
    GlaShape shape; // with a segment for each chunk
    TensorView q, k, v, g, grad_output;
    TensorView grad_q, grad_k, grad_v, grad_g; // of H heads each: where these share keys, the caller adds them
    const bf16* states;      // the scaled state before each chunk, [slots, H, state_values / 8, TERMS, K / 8] blocks of 8 x 8
    const bf16* state_grads; // the scaled gradient after each chunk
    const int* plain_states; // which of them are not scaled, and so the chunk's queries begin with the factor 1, [slots, H]
    const int* plain_grads;  // ... and its keys end with it
    int state_values;
    float scale;
    int blocks; // sequences * H * segments
};

// One chunk of one head.
template <int C> struct GlaChunk {
    GlaBlock<C, C> block;
    int kv_head, rows, first;
    i64 slot; // of the chunk and head

    __device__ __forceinline__ GlaChunk(const GlaChunkBackward& p, int index)
        : block(p.shape, index),
          kv_head(block.head / p.shape.group),
          rows(block.rows(0)),
          first(block.first * C),
          slot(block.slot(p.shape.sequences, 0) * p.shape.heads + block.head) {}

    template <class X> __device__ __forceinline__ Rows<X> rows_of(const TensorView& view, int head) const {
        return block.sequence.template rows<X>(view, head);
    }
};

// The chunk's log-decays, from global memory: they are needed at the beginning and at the end. meanwhile() is called while they
// are on their way. The result tells whether some of the thread's were limited and so have no gradient.
template <class G, int VEC, int C, int K, int THREADS, class Meanwhile>
__device__ __forceinline__ bool load_gates(const GlaChunkBackward& p, const GlaChunk<C>& chunk, ChunkGates<C, K, THREADS>& gates,
                                          Meanwhile meanwhile) {
    typedef ChunkGates<C, K, THREADS> Gates;
    auto g = chunk.template rows_of<G>(p.g, chunk.kv_head);
    int cols = p.shape.key_size - gates.col;
    const G* from = g[chunk.first + gates.row] + gates.col;
    typename Pair<G>::Type pairs[Gates::ROWS];
    if (chunk.rows == C && p.shape.key_size == K) // without conditions
#pragma unroll
        for (int i = 0; i < Gates::ROWS; i++, from += g.stride) pairs[i] = load_pair<VEC>(from, 2);
    else
#pragma unroll
        for (int i = 0; i < Gates::ROWS; i++, from += g.stride)
            pairs[i] = gates.row + i < chunk.rows && cols > 0 ? load_pair<VEC>(from, cols) : typename Pair<G>::Type{};
    meanwhile();
    float lowest = 0.f;
    gates.sum_up([&](int row, int) {
        float x = Pair<G>::low(pairs[row - gates.row]), y = Pair<G>::high(pairs[row - gates.row]);
        lowest = fminf(lowest, fminf(x, y));
        return make_float2(x, y);
    });
    return is_limited(lowest);
}

// Makes the gradients of limited log-decays 0.
template <class G, int VEC, int C, int K, int THREADS>
__device__ __forceinline__ void clear_limited(const GlaChunkBackward& p, const GlaChunk<C>& chunk,
                                              const ChunkGates<C, K, THREADS>& gates,
                                              float (&grads)[ChunkGates<C, K, THREADS>::ROWS][2]) {
    auto g = chunk.template rows_of<G>(p.g, chunk.kv_head);
    int cols = p.shape.key_size - gates.col;
#pragma unroll
    for (int i = 0; i < ChunkGates<C, K, THREADS>::ROWS; i++) {
        if (gates.row + i >= chunk.rows || cols <= 0) continue;
        auto pair = load_pair<VEC>(g[chunk.first + gates.row + i] + gates.col, cols);
        if (is_limited(Pair<G>::low(pair))) grads[i][0] = 0.f;
        if (is_limited(Pair<G>::high(pair))) grads[i][1] = 0.f;
    }
}

// Begins to copy the chunk's rows of one tensor and head.
template <int VEC, int THREADS, int C, class Tile>
__device__ __forceinline__ void load(const GlaChunk<C>& chunk, const Tile& tile, const TensorView& view, int head, int cols) {
    auto source = chunk.template rows_of<typename Tile::Element>(view, head);
    load_tile<VEC, THREADS>(tile, source, chunk.first, chunk.rows, cols, opaque(threadIdx.x));
}

} // namespace fla
