// What both passes of the RMS norms share. A row [groups * size] is normed in groups; a line is one group of one row. Each block
// keeps to one group, so that a thread meets the same columns, and the same weights, in every line.
//
// Constants: ELEMENT of x, gate and y (float, bf16 or fp16); STREAM of what is normed, which may be float where x is added to a
// residual first, that is where ADDED is 1, and is ELEMENT otherwise; GATED 0 or 1; LANES threads for a line, at most a warp or
// all of a block; THREADS of a block; PER_THREAD columns of a line for a thread, VECTOR of them together (16 bytes, or 1 where
// something is not aligned).
#pragma once
#include "fla/activation.cuh"
#include "fla/ptx.cuh"
#include "fla/vector.cuh"

namespace fla {

constexpr int LINES = THREADS / LANES;       // at once in a block
constexpr int COLUMNS = LANES * PER_THREAD;  // the largest `size`
constexpr int CHUNKS = PER_THREAD / VECTOR;  // of a thread

// A matrix [rows, groups * size] with dense rows.
struct NormMatrix {
    void* data;
    i64 row; // elements to the next row
};

struct NormSizes {
    i64 rows;
    int groups, size;
};

// Where a thread works.
struct NormPlace {
    int group, first_line, line, lane;
    i64 step; // rows from one to the next of this thread

    __device__ __forceinline__ explicit NormPlace(const NormSizes& sizes)
        : group(blockIdx.x % sizes.groups), first_line(blockIdx.x / sizes.groups * LINES), line(threadIdx.x / LANES),
          lane(threadIdx.x % LANES), step((i64)(gridDim.x / sizes.groups) * LINES) {}

    // The first column of a chunk.
    __device__ __forceinline__ int column(int chunk) const { return (chunk * LANES + lane) * VECTOR; }
};

using Element = ELEMENT;
using Stream = STREAM;
using Chunk = Vector<Element, VECTOR>;
using StreamChunk = Vector<Stream, VECTOR>;

// A line in registers: zeros where it has no columns, and everywhere without a row.
template <class T>
__device__ __forceinline__ void load_line(Vector<T, VECTOR> (&chunks)[CHUNKS], const NormMatrix& matrix, i64 row, bool exists,
                                          const NormPlace& place, const NormSizes& sizes) {
    const T* line = static_cast<const T*>(matrix.data) + row * matrix.row + (i64)place.group * sizes.size;
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        if (exists && place.column(c) < sizes.size)
            chunks[c].load(line + place.column(c));
        else
            chunks[c].clear();
    }
}

// Asks for a line ahead of its turn, where a block has but one at a time: memory has work then while the block computes.
template <class T>
__device__ __forceinline__ void prefetch_line(const NormMatrix& matrix, i64 row, const NormPlace& place, const NormSizes& sizes) {
    if constexpr (LANES > 32) {
        constexpr int SHARERS = 128 / (VECTOR * sizeof(T)); // threads whose columns lie in one line of the cache
        if (row >= sizes.rows || place.lane % SHARERS != 0) return;
        const T* line = static_cast<const T*>(matrix.data) + row * matrix.row + (i64)place.group * sizes.size;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
            if (place.column(c) < sizes.size) prefetch(line + place.column(c));
    }
}

// Writes some values of a line that exists.
template <class T>
__device__ __forceinline__ void store_chunk(const float (&values)[VECTOR], const NormMatrix& matrix, i64 row, int chunk,
                                            const NormPlace& place, const NormSizes& sizes) {
    Vector<T, VECTOR> vector;
    vector.set(values);
    vector.store(static_cast<T*>(matrix.data) + row * matrix.row + (i64)place.group * sizes.size + place.column(chunk));
}

// Some weights: of ELEMENT, or float32, or 1 if there are none.
struct NormWeight {
    const void* data; // [groups * size], or null
    int is_float;

    __device__ __forceinline__ void load(float (&weights)[VECTOR], const NormPlace& place, const NormSizes& sizes,
                                         int chunk) const {
        i64 at = (i64)place.group * sizes.size + place.column(chunk);
        if (data == nullptr || place.column(chunk) >= sizes.size) {
#pragma unroll
            for (float& weight : weights) weight = 1;
        } else if (is_float) {
            read(weights, static_cast<const float*>(data) + at);
        } else {
            read(weights, static_cast<const Element*>(data) + at);
        }
    }

private:
    template <class W> static __device__ __forceinline__ void read(float (&weights)[VECTOR], const W* from) {
        Vector<W, VECTOR> vector;
        vector.load(from);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) weights[i] = vector[i];
    }
};

// What a gate g does: x is multiplied by `inner` before the norm and by `outer` after it; one of them is a = act(g), the other 1.
struct Gate {
    float inner = 1, outer = 1, slope = 0; // slope: da / dg

    __device__ __forceinline__ Gate() {}
    __device__ __forceinline__ Gate(float g, int is_swish, int gate_first) {
        float s = sigmoid(g), a = is_swish ? g * s : s;
        slope = fmaf(a, 1 - s, is_swish ? s : 0);
        inner = gate_first ? a : 1;
        outer = gate_first ? 1 : a;
    }
};

// The sum over the threads of a line, in a fixed order, for each of them. The whole block comes here, `turn` being 0, 1, 0, ...
__device__ __forceinline__ float sum_line(float x, int turn) {
#pragma unroll
    for (int distance = (LANES < 32 ? LANES : 32) / 2; distance > 0; distance /= 2)
        x += __shfl_xor_sync(0xffffffffu, x, distance);
    if constexpr (LANES > 32) {
        __shared__ float warps[2][(LANES + 31) / 32]; // two, so that one barrier is enough
        if (threadIdx.x % 32 == 0) warps[turn][threadIdx.x / 32] = x;
        __syncthreads();
        x = 0;
#pragma unroll
        for (int i = 0; i < LANES / 32; i++) x += warps[turn][i];
    }
    return x;
}

} // namespace fla
