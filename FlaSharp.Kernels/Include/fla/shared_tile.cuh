// Matrices in shared memory, and their way to and from registers.
#pragma once
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

namespace fla {

// ROWS x COLS 16-bit numbers, row by row. The 16-byte chunks of 8 neighbouring rows are exchanged such that both a row of chunks and a
// column of them touch every bank once: the pattern of the copy engine's 128-, 64- and 32-byte swizzles.
template <class T, int ROWS_, int COLS_> struct SharedTile {
    static constexpr int ROWS = ROWS_, COLS = COLS_, CHUNKS = COLS / 8, BYTES = ROWS * COLS * 2;
    static_assert(sizeof(T) == 2 && COLS % 16 == 0 && (COLS & (COLS - 1)) == 0);
    typedef T Element;

    u32 base;

    __device__ __forceinline__ explicit SharedTile(u32 address) : base(address) {}

    // The address of an element.
    __device__ __forceinline__ u32 at(int row, int col) const {
        int key = CHUNKS >= 8 ? row & 7 : row / (8 / CHUNKS) & (CHUNKS - 1);
        return base + row * (COLS * 2) + (((col >> 3) ^ key) << 4) + (col & 7) * 2;
    }
};

// Products of matrices take operands in bfloat16. A float32 number is the sum of two such terms, up to 2^-17 of it, and a product
// the sum of three: those with at least one first term.

// Visits the terms of two neighbouring numbers: visit(which one, the pair).
template <int TERMS, class Visit> __device__ __forceinline__ void split(float x, float y, Visit visit) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) {
        u32 pair = Pair<bf16>::pack(x, y);
        visit(t, pair);
        if (t + 1 < TERMS) x -= Pair<bf16>::low(pair), y -= Pair<bf16>::high(pair);
    }
}

// The first or the second of the numbers again, from their terms.
template <int TERMS> __device__ __forceinline__ float low_of(const u32 (&terms)[TERMS]) {
    float sum = Pair<bf16>::low(terms[0]);
#pragma unroll
    for (int t = 1; t < TERMS; t++) sum += Pair<bf16>::low(terms[t]);
    return sum;
}
template <int TERMS> __device__ __forceinline__ float high_of(const u32 (&terms)[TERMS]) {
    float sum = Pair<bf16>::high(terms[0]);
#pragma unroll
    for (int t = 1; t < TERMS; t++) sum += Pair<bf16>::high(terms[t]);
    return sum;
}

// A 16 x 16 block as an operand of mma_m16n8k16, in a warp's registers: each of its terms as the instruction wants it.
template <int TERMS> struct Operand {
    u32 terms[TERMS][4];

    // Two neighbours in the fragments' register `e`.
    __device__ __forceinline__ void set(int e, float x, float y) {
        split<TERMS>(x, y, [&](int t, u32 pair) { terms[t][e] = pair; });
    }
};

// ROWS x COLS operands: loaded as numbers of type T, and then replaced by their terms, a matrix for each, in place. 8 neighbours in
// float32 lie where the 8 of the first and of the second terms will.
template <class T, int ROWS_, int COLS_> struct OperandTile {
    typedef SharedTile<bf16, ROWS_, COLS_> Term;
    typedef T Element;
    static constexpr int ROWS = ROWS_, COLS = COLS_, TERMS = sizeof(T) / sizeof(bf16), BYTES = TERMS * Term::BYTES;

    u32 base;

    __device__ __forceinline__ explicit OperandTile(u32 address) : base(address) {}

    __device__ __forceinline__ Term term(int t) const { return Term(base + t * Term::BYTES); }

    // The address of a number as it is loaded.
    __device__ __forceinline__ u32 at(int row, int col) const {
        if constexpr (TERMS == 1)
            return term(0).at(row, col);
        else
            return term(col >> 2 & 1).at(row, col & ~7) + (col & 3) * (u32)sizeof(T);
    }

    // Two neighbouring numbers by their terms.
    __device__ __forceinline__ void store(int row, int col, float x, float y) const {
        u32 place = term(0).at(row, col);
        split<TERMS>(x, y, [&](int t, u32 pair) { shared_store(place + t * Term::BYTES, pair); });
    }
    __device__ __forceinline__ void load(u32 (&terms)[TERMS], int row, int col) const {
#pragma unroll
        for (int t = 0; t < TERMS; t++) terms[t] = shared_load<u32>(term(t).at(row, col));
    }
};

// ROWS x COLS numbers of any type, row by row, for threads that read along rows.
template <class T, int ROWS_, int COLS_> struct PlainTile {
    static constexpr int ROWS = ROWS_, COLS = COLS_, BYTES = ROWS * COLS * sizeof(T);
    typedef T Element;

    u32 base;

    __device__ __forceinline__ explicit PlainTile(u32 address) : base(address) {}

    __device__ __forceinline__ u32 at(int row, int col) const { return base + (row * COLS + col) * (u32)sizeof(T); }
};

// Begins to copy `rows` x `cols` numbers from global memory, VEC at a time; what lies beyond them in the tile becomes 0.
// Each of THREADS threads takes its part; the caller commits the copies and waits for them.
template <int VEC, int THREADS, class Tile>
__device__ __forceinline__ void load_tile(const Tile& tile, const Rows<typename Tile::Element>& source, int first, int rows, int cols,
                                          int thread) {
    typedef typename Tile::Element T;
    constexpr int PIECE = VEC * sizeof(T) > 16 ? 16 / sizeof(T) : VEC, BYTES = PIECE * sizeof(T), PIECES = Tile::COLS / PIECE;
    constexpr int ACROSS = PIECES < THREADS ? PIECES : THREADS, DOWN = THREADS / ACROSS;
#pragma unroll
    for (int across = 0; across < PIECES / ACROSS; across++) {
        int row = thread / ACROSS, col = (across * ACROSS + thread % ACROSS) * PIECE;
        const T* from = source[first + row] + col;
#pragma unroll
        for (int down = 0; down < Tile::ROWS; down += DOWN, row += DOWN, from = opaque(from + DOWN * source.stride)) {
            if (DOWN > Tile::ROWS && row >= Tile::ROWS) continue;
            bool valid = row < rows && col < cols;
            if constexpr (BYTES >= 4)
                copy_async<BYTES>(tile.at(row, col), valid ? from : source.first, valid);
            else
                shared_store(tile.at(row, col), valid ? *from : T{0});
        }
    }
}

// Writes two neighbouring numbers, or the first one alone where only one column is left.
template <int VEC, class T> __device__ __forceinline__ void store_pair(T* there, int cols, float x, float y) {
    if constexpr (VEC == 1) {
        there[0] = from_float<T>(x);
        if (cols > 1) there[1] = from_float<T>(y);
    } else if constexpr (sizeof(T) == 4) {
        *reinterpret_cast<float2*>(there) = make_float2(x, y);
    } else {
        *reinterpret_cast<u32*>(there) = Pair<T>::pack(x, y);
    }
}

// Turns a loaded tile into its terms.
template <int THREADS, class T, int ROWS, int COLS>
__device__ __forceinline__ void to_terms(const OperandTile<T, ROWS, COLS>& tile, int thread) {
    if constexpr (sizeof(T) == 4)
        for (int i = thread; i < ROWS * COLS / 8; i += THREADS) {
            int row = i / (COLS / 8), col = i % (COLS / 8) * 8;
            float4 left = shared_load<float4>(tile.at(row, col)), right = shared_load<float4>(tile.at(row, col + 4));
            Operand<2> chunk;
            chunk.set(0, left.x, left.y), chunk.set(1, left.z, left.w), chunk.set(2, right.x, right.y), chunk.set(3, right.z, right.w);
#pragma unroll
            for (int t = 0; t < 2; t++) {
                const u32(&x)[4] = chunk.terms[t];
                shared_store(tile.term(t).at(row, col), make_uint4(x[0], x[1], x[2], x[3]));
            }
        }
    else if constexpr (!same<T, bf16>())
        for (int i = thread; i < ROWS * COLS / 2; i += THREADS) {
            u32 place = tile.at(i / (COLS / 2), i % (COLS / 2) * 2), pair = shared_load<u32>(place);
            shared_store(place, Pair<bf16>::pack(Pair<T>::low(pair), Pair<T>::high(pair)));
        }
}

// Writes COLS columns of a tile from `col` on to global memory, `rows` rows, to column `to` and following but not beyond `size`.
// One warp does it: it reads what its own lanes wrote.
template <int VEC, int COLS, class Tile>
__device__ __forceinline__ void store_tile(const Tile& tile, int col, const Rows<typename Tile::Element>& target, int first, int rows,
                                           int to, int size, int lane) {
    typedef typename Tile::Element T;
    constexpr int PIECE = 16 / sizeof(T), ACROSS = COLS / PIECE, DOWN = 32 / ACROSS;
    int row = lane / ACROSS, piece = lane % ACROSS * PIECE, left = size - to - piece;
    T* there = target[first + row] + to + piece;
#pragma unroll
    for (int down = 0; down < Tile::ROWS; down += DOWN, row += DOWN, there = opaque(there + DOWN * target.stride)) {
        if (row >= rows || left <= 0) continue;
        u32 from = tile.at(row, col + piece);
        if constexpr (VEC >= PIECE)
            *reinterpret_cast<uint4*>(there) = shared_load<uint4>(from);
        else
            for (int c = 0; c < min(PIECE, left); c++) there[c] = shared_load<T>(from + c * sizeof(T));
    }
}

// The 16 x 16 block of a tile at (row, col) as an operand of mma_m16n8k16, as it lies or transposed.
// A left operand is one fragment; a right one is two, of 8 columns each: b[0], b[1] and b[2], b[3].
template <int TERMS, class Tile> __device__ __forceinline__ void load_left(Operand<TERMS>& a, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) ldmatrix_x4(a.terms[t], tile.term(t).at(row + (lane & 15), col + (lane >> 4) * 8));
}
template <int TERMS, class Tile>
__device__ __forceinline__ void load_left_transposed(Operand<TERMS>& a, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) ldmatrix_x4_trans(a.terms[t], tile.term(t).at(row + (lane & 7) + (lane >> 4) * 8, col + (lane & 8)));
}
template <int TERMS, class Tile> __device__ __forceinline__ void load_right(Operand<TERMS>& b, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) ldmatrix_x4_trans(b.terms[t], tile.term(t).at(row + (lane & 15), col + (lane >> 4) * 8));
}
template <int TERMS, class Tile>
__device__ __forceinline__ void load_right_transposed(Operand<TERMS>& b, const Tile& tile, int row, int col, int lane) {
#pragma unroll
    for (int t = 0; t < TERMS; t++) ldmatrix_x4(b.terms[t], tile.term(t).at(row + (lane & 7) + (lane >> 4) * 8, col + (lane & 8)));
}

// Transposes an accumulator [8 x 8] of float32 numbers, half by half.
__device__ __forceinline__ float2 transpose_8x8(float2 x) {
    u32 left = __float_as_uint(x.x), right = __float_as_uint(x.y);
    u32 low = transpose_8x8((left & 0xffffu) | right << 16), high = transpose_8x8(left >> 16 | (right & 0xffff0000u));
    return make_float2(__uint_as_float((low & 0xffffu) | high << 16), __uint_as_float(low >> 16 | (high & 0xffff0000u)));
}

// d [16 x 16] += a b, both of 16 x 16. Terms may be of another 16-bit type.
template <class T = bf16, int TERMS>
__device__ __forceinline__ void mma_16x16(float (&left)[4], float (&right)[4], const Operand<TERMS>& a, const Operand<TERMS>& b) {
#pragma unroll
    for (int i = 0; i < TERMS; i++)
#pragma unroll
        for (int j = 0; i + j < TERMS; j++) {
            mma_m16n8k16<T>(left, a.terms[i], b.terms[j][0], b.terms[j][1]);
            mma_m16n8k16<T>(right, a.terms[i], b.terms[j][2], b.terms[j][3]);
        }
}

// Two neighbouring accumulators [16 x 8] as one left operand [16 x 16].
template <int TERMS> __device__ __forceinline__ void pack_left(Operand<TERMS>& a, const float (&left)[4], const float (&right)[4]) {
    a.set(0, left[0], left[1]);
    a.set(1, left[2], left[3]);
    a.set(2, right[0], right[1]);
    a.set(3, right[2], right[3]);
}

} // namespace fla
