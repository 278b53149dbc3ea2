// Numbers in float32 as operands of products, which take bfloat16: the sum of two terms, right up to 2^-17 of it. A product is
// the sum of those three that have a first term.
#pragma once
#include "fla/shared_tile.cuh"

namespace fla {

// What numbers of type T are turned into as operands.
template <class T> struct OperandOf { typedef bf16 Type; };
template <> struct OperandOf<float> { typedef float Type; };

// Visits the terms of two neighbouring numbers: visit(which, the pair).
template <int TERMS, class Visit>
__device__ __forceinline__ void visit_terms(float x, float y, Visit visit) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        u32 pair = Pair<bf16>::pack(x, y);
        visit(t, pair);
        if (t + 1 < TERMS) x -= Pair<bf16>::low(pair), y -= Pair<bf16>::high(pair);
    }
}

// The first or the second of two neighbouring numbers again.
__device__ __forceinline__ float low_of(const u32 (&terms)[1]) { return Pair<bf16>::low(terms[0]); }
__device__ __forceinline__ float high_of(const u32 (&terms)[1]) { return Pair<bf16>::high(terms[0]); }
__device__ __forceinline__ float low_of(const u32 (&terms)[2]) { return Pair<bf16>::low(terms[0]) + Pair<bf16>::low(terms[1]); }
__device__ __forceinline__ float high_of(const u32 (&terms)[2]) {
    return Pair<bf16>::high(terms[0]) + Pair<bf16>::high(terms[1]);
}

// A 16 x 16 block as an operand: a fragment for each term.
struct TermFragment {
    u32 of[2][4];
};

// Numbers as they are loaded, and then in their place the two matrices of their terms: of 8 neighbours in a row, 4 lie where
// their first terms will, 4 where the second ones will.
template <int ROWS_, int COLS_> struct SharedTile<float, ROWS_, COLS_> {
    typedef SharedTile<bf16, ROWS_, COLS_> Term;
    static constexpr int ROWS = ROWS_, COLS = COLS_, TERMS = 2, BYTES = TERMS * Term::BYTES;
    typedef float Element;
    typedef TermFragment Fragment;

    u32 base;

    __device__ __forceinline__ explicit SharedTile(u32 address) : base(address) {}

    __device__ __forceinline__ Term term(int t) const { return Term(base + t * Term::BYTES); }

    __device__ __forceinline__ u32 at(int row, int col) const { return term(col >> 2 & 1).at(row, col & ~7) + (col & 3) * 4; }

    __device__ __forceinline__ u32 operand_at(int row, int col) const { return term(0).at(row, col); }
    static __device__ __forceinline__ void store(u32 address, float x, float y) {
        visit_terms<TERMS>(x, y, [=](int t, u32 pair) { shared_store(address + t * Term::BYTES, pair); });
    }
    static __device__ __forceinline__ void load(u32 (&terms)[2], u32 address) {
        terms[0] = shared_load<u32>(address), terms[1] = shared_load<u32>(address + Term::BYTES);
    }

    static __device__ __forceinline__ u32 step(u32 address, int row, int col) { return Term::step(address, row, col); }
};

// Turns loaded numbers into their terms, in place.
template <class T, int THREADS, int ROWS, int COLS>
__device__ __forceinline__ void to_bf16(const SharedTile<float, ROWS, COLS>& tile, int thread) {
    for (int i = thread; i < ROWS * COLS / 8; i += THREADS) {
        int row = i / (COLS / 8), col = i % (COLS / 8) * 8;
        float4 x = shared_load<float4>(tile.at(row, col)), y = shared_load<float4>(tile.at(row, col + 4));
        u32 terms[2][4];
        visit_terms<2>(x.x, x.y, [&](int t, u32 pair) { terms[t][0] = pair; });
        visit_terms<2>(x.z, x.w, [&](int t, u32 pair) { terms[t][1] = pair; });
        visit_terms<2>(y.x, y.y, [&](int t, u32 pair) { terms[t][2] = pair; });
        visit_terms<2>(y.z, y.w, [&](int t, u32 pair) { terms[t][3] = pair; });
#pragma unroll
        for (int t = 0; t < 2; t++)
            shared_store(tile.term(t).at(row, col), make_uint4(terms[t][0], terms[t][1], terms[t][2], terms[t][3]));
    }
}

// As of one matrix.
template <class Tile>
__device__ __forceinline__ void load_left(TermFragment& a, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < 2; t++) load_left(a.of[t], tile.term(t), row, col, lane);
}
template <class Tile>
__device__ __forceinline__ void load_left_transposed(TermFragment& a, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < 2; t++) load_left_transposed(a.of[t], tile.term(t), row, col, lane);
}
template <class Tile>
__device__ __forceinline__ void load_right(TermFragment& b, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < 2; t++) load_right(b.of[t], tile.term(t), row, col, lane);
}
template <class Tile>
__device__ __forceinline__ void load_right_transposed(TermFragment& b, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < 2; t++) load_right_transposed(b.of[t], tile.term(t), row, col, lane);
}

template <class T = bf16>
__device__ __forceinline__ void mma_16x16(float (&left)[4], float (&right)[4], const TermFragment& a, const TermFragment& b) {
    mma_16x16(left, right, a.of[0], b.of[1]);
    mma_16x16(left, right, a.of[1], b.of[0]);
    mma_16x16(left, right, a.of[0], b.of[0]);
}

__device__ __forceinline__ void pack_left(TermFragment& a, const float (&left)[4], const float (&right)[4]) {
#pragma unroll
    for (int e = 0; e < 2; e++) {
        visit_terms<2>(left[2 * e], left[2 * e + 1], [&](int t, u32 pair) { a.of[t][e] = pair; });
        visit_terms<2>(right[2 * e], right[2 * e + 1], [&](int t, u32 pair) { a.of[t][e + 2] = pair; });
    }
}

// Transposes an accumulator of 8 x 8 numbers, half by half.
__device__ __forceinline__ float2 transpose_8x8(float2 x) {
    u32 left = __float_as_uint(x.x), right = __float_as_uint(x.y);
    u32 low = transpose_8x8((left & 0xffffu) | right << 16), high = transpose_8x8(left >> 16 | (right & 0xffff0000u));
    return make_float2(__uint_as_float((low & 0xffffu) | high << 16), __uint_as_float(low >> 16 | (high & 0xffff0000u)));
}

} // namespace fla
