// Softmax attention: which keys a query sees, and what becomes of the product of the two. Scores are logarithms to base 2.
#pragma once
#include "fla/philox.cuh"
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

namespace fla {

// The score of a key that is not seen: minus infinity.
__device__ __forceinline__ float hidden() { return __uint_as_float(0xff800000u); }

// A call: sizes and options, the same for forward and backward.
struct AttentionShape {
    Sequences queries, keys; // as many
    int heads, group;        // of q; how many of them share a head of k and v
    int key_size, value_size;
    int causal, window;      // whether query i sees keys up to i + Tk - Tq only; of these the last `window` ones, or all for 0
    float scale, softcap;    // softcap 0 for none
    u32 dropout;             // a weight is dropped if its random word is below this: 0 for none
    float kept;              // by what the others are multiplied
    u64 seed, offset;
    const float* sinks;      // [H], or null
    const float* slopes;     // [H], or null
};

// The keys, or queries, from `first` up to but not including `end`; none if end <= first.
struct Range {
    int first, end;

    __device__ __forceinline__ bool contains(int i) const { return first <= i && i < end; }
};

// A sequence of queries with its keys.
struct AttentionSequence {
    Sequence queries, keys;
    int ahead; // query i is aligned with key i + ahead

    __device__ __forceinline__ AttentionSequence(const AttentionShape& shape, int index)
        : queries(shape.queries, index), keys(shape.keys, index), ahead(keys.length - queries.length) {}

    // The keys that some query of `block`, which has one, sees.
    __device__ __forceinline__ Range seen(const AttentionShape& shape, Range block) const {
        return {shape.window ? max(0, block.first + ahead - shape.window + 1) : 0,
                shape.causal ? min(keys.length, block.end + ahead) : keys.length};
    }
    // Those that all of its queries see.
    __device__ __forceinline__ Range seen_by_all(const AttentionShape& shape, Range block) const {
        return {shape.window ? max(0, block.end + ahead - shape.window) : 0,
                shape.causal ? min(keys.length, block.first + ahead + 1) : keys.length};
    }
    // The queries that see some key of `block`, which has one.
    __device__ __forceinline__ Range seeing(const AttentionShape& shape, Range block) const {
        return {shape.causal ? max(0, block.first - ahead) : 0,
                shape.window ? min(queries.length, block.end - 1 - ahead + shape.window) : queries.length};
    }
    __device__ __forceinline__ bool sees(const AttentionShape& shape, int query, int key) const {
        int distance = query + ahead - key;
        return key < keys.length && !(shape.causal && distance < 0) && !(shape.window && distance >= shape.window);
    }
};

// A head's way from products q k to scores.
struct AttentionScore {
    float factor; // of a product
    float cap;    // 0 for none
    float slope;  // per token of distance

    __device__ __forceinline__ AttentionScore(const AttentionShape& shape, int head)
        : factor(shape.softcap ? 2 * LOG2E * shape.scale / shape.softcap : LOG2E * shape.scale), cap(LOG2E * shape.softcap),
          slope(shape.slopes ? LOG2E * shape.slopes[head] : 0.f) {}

    __device__ __forceinline__ float capped(float product) const {
        float x = factor * product;
        return cap ? cap - __fdividef(2 * cap, 1 + pow2(x)) : x; // tanh(x) = 1 - 2 / (1 + e^2x)
    }
    // The derivative of capped() by log2(e) scale times the product.
    __device__ __forceinline__ float derivative(float capped) const {
        float ratio = cap ? __fdividef(capped, cap) : 0.f;
        return 1 - ratio * ratio;
    }
    // What is added for a key at this distance from the query's aligned one.
    __device__ __forceinline__ float bias(int distance) const { return -slope * (float)abs(distance); }
};

// Which weights of a head of a sequence are dropped. A draw decides on two queries and two keys, the second ones 8 after the
// first ones: whoever holds a 16 x 16 block of the weights, or of their transpose, as mma_m16n8k16 leaves it draws nothing twice.
struct AttentionDropout {
    u64 seed;
    u32 line, offset, threshold;
    float kept;

    __device__ __forceinline__ AttentionDropout(const AttentionShape& shape, int sequence, int head)
        : seed(shape.seed ^ (shape.offset >> 32 << 32)), line((u32)sequence * shape.heads + head), offset((u32)shape.offset),
          threshold(shape.dropout), kept(shape.kept) {}

    // By what the weights of (query, key), (query, key + 8), (query + 8, key), (query + 8, key + 8) are multiplied; neither
    // number has the binary digit 8.
    __device__ __forceinline__ void draw(float (&factors)[4], int query, int key) const {
        u32 words[4] = {(u32)query, (u32)key, line, offset};
        philox(words, seed);
#pragma unroll
        for (int i = 0; i < 4; i++) factors[i] = words[i] < threshold ? 0.f : kept;
    }
};

} // namespace fla
