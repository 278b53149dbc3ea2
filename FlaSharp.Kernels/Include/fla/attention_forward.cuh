// What the forward kernels of softmax attention share: the blocks that they work on, and rows from first score to output.
#pragma once
#include "fla/attention.cuh"
#include "fla/quad.cuh"
#include "fla/shared_tile.cuh"

namespace fla {

// A call, but for the inputs.
struct AttentionCall {
    AttentionShape shape;
    TensorView o;
    float* log_sum_exp; // natural, [B, H, Tq]; of packed sequences [1, H, N]; or null
    int time;           // Tq or N
    int blocks;         // of the longest sequence's queries
    int section;        // heads of sequences whose blocks follow one another: their keys and values fit into the L2 cache
    int tiles;          // blocks in all
    int turns_back;     // whether every other round of them is dealt in reverse
};

// The first and the next tile of a block of threads, of as many as run at once.
struct AttentionTurn {
    int round = 0;

    __device__ __forceinline__ int tile(const AttentionCall& call) const {
        return round * gridDim.x + (round % 2 && call.turns_back ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
    }
};

// A block of ROWS queries of one head with its tiles of KEYS keys. Those with the most keys come first in a section.
template <int ROWS, int KEYS> struct alignas(16) AttentionTile {
    int head;
    AttentionSequence sequence;
    Range block;
    int last, count; // key tiles, visited from the last one down; at least one if the block exists

    __device__ __forceinline__ AttentionTile(const AttentionCall& call, int n) : AttentionTile(call, Place(call, n)) {}

    // Not beyond the end of a short sequence.
    __device__ __forceinline__ bool exists() const { return block.end > block.first; }
    // The first key of the i-th visited tile.
    __device__ __forceinline__ int key(int i) const { return (last - i) * KEYS; }

private:
    // The place of the n-th one: which head of all sequences, and block of its queries. Divides without signs, which is faster.
    struct Place {
        u32 line, block;

        __device__ __forceinline__ Place(const AttentionCall& call, u32 n) {
            u32 lines = call.shape.queries.count * call.shape.heads, whole = call.blocks * call.section, section = n / whole;
            u32 rest = n - section * whole, width = min(call.section, lines - section * call.section), back = rest / width;
            line = section * call.section + rest - back * width;
            block = call.blocks - 1 - back;
        }
    };

    __device__ __forceinline__ AttentionTile(const AttentionCall& call, Place place)
        : head(place.line % (u32)call.shape.heads), sequence(call.shape, place.line / (u32)call.shape.heads) {
        block.first = place.block * ROWS;
        block.end = min(sequence.queries.length, block.first + ROWS);
        Range keys = sequence.seen(call.shape, block);
        last = max(0, (keys.end - 1) / KEYS);
        count = exists() ? max(1, last - keys.first / KEYS + 1) : 0;
    }
};

// A thread's part of two rows of scores, `query` and the eighth after it, as mma_m16n8k16 leaves them. What is kept of a row is
// the sum of its weights, and elsewhere their products with the values, by a power of two that follows the largest score.
template <bool HAS_OPTIONS> struct AttentionRows {
    static constexpr float SLACK = 8; // by how much scores may exceed that power before it follows

    int query, lane;
    float factor;         // from what is compared to scores
    float top[2], sum[2]; // the power, by that factor; the thread's part of the sum
    float decay[2];       // by what the products so far are to be multiplied

    __device__ __forceinline__ AttentionRows(const AttentionShape& shape, int head, int query, int lane)
        : query(query), lane(lane), factor(HAS_OPTIONS ? 1.f : LOG2E * shape.scale), top{hidden(), hidden()}, sum{} {
        if (HAS_OPTIONS && shape.sinks) {
            float sink = LOG2E * shape.sinks[head];
            top[0] = top[1] = sink;
            sum[0] = sum[1] = lane % 4 == 0 && sink > hidden() ? 1.f : 0.f;
        }
    }

    // Turns products with the keys from `key` on into weights. Whether some thread of the warp has a `decay` other than 1.
    template <class Tile, int N>
    __device__ __forceinline__ bool weigh(float (&scores)[N][4], const AttentionShape& shape, const Tile& tile, Range open,
                                          int key) {
        int col = key + lane % 4 * 2;
        if constexpr (HAS_OPTIONS) cap(scores, shape, tile, col);
        if (key < open.first || key + N * 8 > open.end) hide(scores, shape, tile, col);
        bool grew = exponentiate(scores);
        if (HAS_OPTIONS && shape.dropout) drop(scores, shape, tile, col);
        return __any_sync(~0u, grew);
    }
    template <int N> __device__ __forceinline__ void multiply(float (&out)[N][4]) const {
#pragma unroll
        for (auto& sums : out)
#pragma unroll
            for (int e = 0; e < 4; e++) sums[e] *= decay[e / 2];
    }

    // Leaves the output and the logarithm of the sum; VEC numbers are aligned together.
    template <class T, int VEC, class Tile, int N>
    __device__ __forceinline__ void store(const float (&out)[N][4], const AttentionCall& call, const Tile& tile) const {
        auto target = tile.sequence.queries.template rows<T>(call.o, tile.head);
        i64 line = tile.sequence.queries.batch * call.shape.heads + tile.head;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int row = query + r * 8;
            bool exists = row < tile.block.end;
            float total = quad_sum(sum[r]), inverse = total == 0.f ? 0.f : reciprocal(total);
            if (exists && call.log_sum_exp && lane % 4 == 0)
                call.log_sum_exp[line * call.time + tile.sequence.queries.start + row] =
                    total == 0.f ? hidden() : LN2 * (top[r] * factor + __log2f(total));
            if constexpr (VEC == 8) {
#pragma unroll
                for (int n = 0; n < N; n += 4) {
                    u32 words[4];
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        words[i] = Pair<T>::pack(out[n + i][2 * r] * inverse, out[n + i][2 * r + 1] * inverse);
                    quad_transpose(words, lane);
                    int col = n * 8 + lane % 4 * 8;
                    if (exists && col < call.shape.value_size)
                        store_16_bytes(target[row] + col, words);
                }
            } else {
#pragma unroll
                for (int n = 0; n < N; n++) {
                    int col = n * 8 + lane % 4 * 2, left = call.shape.value_size - col;
                    if (exists && left > 0)
                        store_pair<VEC>(target[row] + col, left, out[n][2 * r] * inverse, out[n][2 * r + 1] * inverse);
                }
            }
        }
    }

private:
    // `head` is made opaque in these: what depends on it would take registers throughout.
    template <class Tile, int N>
    __device__ __forceinline__ void cap(float (&scores)[N][4], const AttentionShape& shape, const Tile& tile, int col) const {
        AttentionScore score(shape, opaque(tile.head));
#pragma unroll
        for (int n = 0; n < N; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) scores[n][e] = score.capped(scores[n][e]);
        if (shape.slopes)
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    scores[n][e] += score.bias(query + e / 2 * 8 + tile.sequence.ahead - col - n * 8 - e % 2);
    }
    template <class Tile, int N>
    __device__ __forceinline__ void hide(float (&scores)[N][4], const AttentionShape& shape, const Tile& tile, int col) const {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            Range seen = tile.sequence.seen(shape, {query + r * 8, query + r * 8 + 1});
            int first = seen.first - col, end = seen.end - col;
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    if (n * 8 + e >= end || (HAS_OPTIONS && n * 8 + e < first)) scores[n][2 * r + e] = hidden();
        }
    }
    template <int N> __device__ __forceinline__ bool exponentiate(float (&scores)[N][4]) {
        bool grew = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float highest = top[r];
#pragma unroll
            for (int n = 0; n < N; n++) highest = fmaxf(highest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            highest = quad_max(highest);
            decay[r] = 1;
            if ((highest - top[r]) * factor > SLACK) {
                decay[r] = pow2((top[r] - highest) * factor);
                top[r] = highest;
                sum[r] *= decay[r];
                grew = true;
            }
            float shift = top[r] == hidden() ? 0.f : top[r] * factor; // no key seen yet
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    scores[n][e] = pow2(scores[n][e] * factor - shift);
                    sum[r] += scores[n][e];
                }
        }
        return grew;
    }
    template <class Tile, int N>
    __device__ __forceinline__ void drop(float (&scores)[N][4], const AttentionShape& shape, const Tile& tile, int col) const {
        AttentionDropout dropout(shape, tile.sequence.queries.index, opaque(tile.head));
#pragma unroll
        for (int n = 0; n < N; n += 2)
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float factors[4];
                dropout.draw(factors, query, opaque(col + n * 8 + e)); // one after the other
                scores[n][e] *= factors[0], scores[n + 1][e] *= factors[1];
                scores[n][2 + e] *= factors[2], scores[n + 1][2 + e] *= factors[3];
            }
    }
};

// Weights as left operands of products with the values.
template <class T, int N> __device__ __forceinline__ void pack_weights(u32 (&weights)[N / 2][4], const float (&scores)[N][4]) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int r = 0; r < 2; r++) weights[n / 2][n % 2 * 2 + r] = Pair<T>::pack(scores[n][2 * r], scores[n][2 * r + 1]);
}

} // namespace fla
