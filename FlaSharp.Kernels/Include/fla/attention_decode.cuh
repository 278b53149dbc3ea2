// Softmax attention of a few queries over keys in a cache, cut into runs of keys: what the pass over the runs and the one that
// joins them share. ELEMENT: bf16 or fp16. ROWS: rows of a block, each a query of a head; the heads that share keys are its rows.
#pragma once
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

namespace fla {

typedef ELEMENT Element;

__device__ __forceinline__ float infinity() { return __int_as_float(0x7f800000); }

struct DecodeShape {
    Sequences queries;   // of each row of the cache, at the end of its keys
    const int* lengths;  // keys of each row of the cache
    int kv_heads, group; // heads of keys and values; query heads that share one
    int value_size;
    int window;          // keys that a query sees; 0 for all up to its own
    int run, splits;     // keys of a run; runs of the longest row
    int tiles;           // blocks for the rows of a head of keys
    const float* sinks;  // [H], or null
};

// The rows of a block, and the keys that they see.
struct DecodePlace {
    Sequence sequence;
    int kv_head, tile, first, length; // the first key that is seen; the row's keys

    __device__ __forceinline__ DecodePlace(const DecodeShape& shape, int sequence_index, int tile, int kv_head)
        : sequence(shape.queries, sequence_index), kv_head(kv_head), tile(tile), length(shape.lengths[sequence_index]) {
        first = shape.window ? max(0, length - sequence.length - shape.window + 1) : 0;
    }

    __device__ __forceinline__ int runs(const DecodeShape& shape) const { return (length - first + shape.run - 1) / shape.run; }
    // Where the block's results lie among those of all.
    __device__ __forceinline__ i64 part(const DecodeShape& shape, int split) const {
        return (((i64)sequence.index * shape.kv_heads + kv_head) * shape.tiles + tile) * shape.splits + split;
    }
};

// One of a block's rows.
struct DecodeRow {
    int query, head; // in the sequence; of H
    bool exists;

    __device__ __forceinline__ DecodeRow(const DecodeShape& shape, const DecodePlace& place, int row) {
        int index = place.tile * ROWS + row;
        query = index / shape.group;
        head = place.kv_head * shape.group + index % shape.group;
        exists = query < place.sequence.length;
    }
};

// The larger of two maxima as something to subtract: that of no scores is -inf.
__device__ __forceinline__ float finite_max(float max) { return max == -infinity() ? 0.f : max; }

// What the sum of weights is divided by is 0 if a query sees no key: then the output is 0.
__device__ __forceinline__ float inverse(float sum) { return sum == 0.f ? 0.f : 1.f / sum; }

} // namespace fla
