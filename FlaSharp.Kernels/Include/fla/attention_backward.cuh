// What the kernels of softmax attention's backward pass share. Each block has a tile of keys, and adds its part of the gradients of the
// queries that see them to float32 sums in global memory, in turns: those of a tile of queries begin with its lowest, or highest, keys.
#pragma once
#include "fla/attention.cuh"

namespace fla {

struct AttentionBackward {
    AttentionShape shape;
    TensorView q, k, v, grad_output, grad_k, grad_v;
    const float* logs;    // of a query's denominator, to base 2; infinite for those that see nothing or do not exist
    const float* deltas;  // the product of its output and that one's gradient
    float* sums;          // of its gradient
    int* turns;           // of a tile of queries
    int lines, together;  // sequences times heads of k and v; how many of these take turns
    int key_tiles;        // of the longest sequence
    int descending;       // whether the highest keys come first
};

// What is stored for queries lies in blocks of so many of a sequence and head, so that no tile has those of two sequences.
constexpr int QUERY_BLOCK = 128;

// The place of a query of a sequence and head among those stored.
__device__ __forceinline__ i64 stored_query(const AttentionShape& shape, const Sequence& sequence, int head, int query) {
    int first = shape.queries.offsets ? (int)(sequence.start / QUERY_BLOCK) + sequence.index
                                      : sequence.index * ((sequence.length + QUERY_BLOCK - 1) / QUERY_BLOCK);
    return ((i64)(first + query / QUERY_BLOCK) * shape.heads + head) * QUERY_BLOCK + query % QUERY_BLOCK;
}

// Tiles of KEYS keys and of QUERIES queries.
template <int KEYS, int QUERIES> struct BackwardTiles {
    static_assert(QUERY_BLOCK % QUERIES == 0);

    // The tiles of queries that see some of a tile of keys.
    static __device__ __forceinline__ Range seeing(const AttentionShape& shape, const AttentionSequence& sequence, Range keys) {
        Range queries = sequence.seeing(shape, keys);
        return {queries.first / QUERIES, queries.end > queries.first ? (queries.end + QUERIES - 1) / QUERIES : 0};
    }
    // The tiles of keys that see, in this sense, a tile of queries.
    static __device__ __forceinline__ Range seen(const AttentionShape& shape, const AttentionSequence& sequence, int tile) {
        int all = (sequence.keys.length + KEYS - 1) / KEYS, first = tile * QUERIES + sequence.ahead; // position among the keys
        return {shape.window ? max(0, first + 1 - shape.window) / KEYS : 0,
                shape.causal ? min(all, max(0, first + QUERIES + KEYS - 1) / KEYS) : all};
    }
};

// A block's tile of keys. Where it waits for another one's turn, that one has a lower number.
template <int KEYS> struct BackwardBlock {
    int line, tile;

    __device__ __forceinline__ BackwardBlock(const AttentionBackward& p, int block) {
        int whole = p.key_tiles * p.together, first = block / whole * p.together, width = min(p.together, p.lines - first);
        line = first + block % whole % width;
        tile = block % whole / width;
        if (p.descending) tile = p.key_tiles - 1 - tile;
    }
    __device__ __forceinline__ Range keys(const AttentionSequence& sequence) const {
        return {tile * KEYS, min(sequence.keys.length, tile * KEYS + KEYS)};
    }
};

} // namespace fla
