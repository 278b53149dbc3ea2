// What the kernels of gated linear attention share: their arguments' common part and the cut of a call into blocks.
#pragma once
#include "fla/tensor.cuh"

namespace fla {

// A call: q, g... are [B, T, H or H / group, K], v is [B, T, H / group, V].
struct GlaShape {
    Sequences sequences;
    int heads, group; // query head h reads key head h / group
    int key_size, value_size;
    int segments;       // of each sequence, each a block of its own
    int segment_chunks; // chunks in each segment but the last
};

// Tokens between the states that are saved for backward, which works on so many at once.
template <class T> constexpr int SAVED_TOKENS = sizeof(T) == 4 ? 32 : 64;

// A block's part: one head, one segment of one sequence. Heads change fastest, so that neighbours read the same tokens. There is
// a saved state every SAVED tokens.
template <int C, int SAVED> struct GlaBlock {
    int head, segment;
    Sequence sequence;
    int first, chunks; // the chunks of the segment
    i64 state;         // which of the states [sequences, H, segments] it begins with

    __device__ __forceinline__ GlaBlock(const GlaShape& shape, int block)
        : head(block % shape.heads),
          segment(shape.segments == 1 ? 0 : block / shape.heads % shape.segments),
          sequence(shape.sequences, shape.segments == 1 ? block / shape.heads : block / shape.heads / shape.segments) {
        int all = (sequence.length + C - 1) / C;
        first = segment * shape.segment_chunks;
        chunks = max(0, segment == shape.segments - 1 ? all - first : min(shape.segment_chunks, all - first));
        state = ((i64)sequence.index * shape.heads + head) * shape.segments + segment;
    }

    // A whole sequence.
    __device__ __forceinline__ GlaBlock(const Sequences& all, int head, int sequence)
        : head(head), segment(0), sequence(all, sequence), first(0), chunks((this->sequence.length + C - 1) / C), state(0) {}

    // Tokens in chunk `n` of the segment.
    __device__ __forceinline__ int rows(int n) const { return min(C, sequence.length - (first + n) * C); }

    // Which of the states [sequences, H].
    __device__ __forceinline__ i64 sequence_state(const GlaShape& shape) const {
        return (i64)sequence.index * shape.heads + head;
    }

    // Which of the saved states is that of chunk `n` of the segment; packed sequences leave gaps.
    __device__ __forceinline__ i64 slot(const Sequences& all, int n) const {
        i64 before = all.offsets ? all.offsets[sequence.index] / SAVED + sequence.index
                                 : (i64)sequence.index * ((all.length + SAVED - 1) / SAVED);
        return before + (first + n) / (SAVED / C);
    }
};

} // namespace fla
