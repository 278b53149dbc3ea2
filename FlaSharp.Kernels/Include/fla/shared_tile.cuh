// Matrices of 16-bit numbers in shared memory, and their way to and from registers.
#pragma once
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

namespace fla {

// ROWS x COLS, row by row in panels of at most 64 columns, one after the other. The 16-byte chunks of 8 neighbouring rows are
// exchanged such that both a row of chunks and a column of them touch every bank once: the pattern of the 128-, 64- and 32-byte
// swizzles of Hopper's copies and products, for which the tile begins at a multiple of 1024 bytes.
template <class T, int ROWS_, int COLS_> struct SharedTile {
    static constexpr int ROWS = ROWS_, COLS = COLS_, BYTES = ROWS * COLS * 2;
    static constexpr int PANEL = COLS < 64 ? COLS : 64, PITCH = PANEL * 2; // columns of a panel, bytes from row to row
    static constexpr int TERMS = 1; // matrices that the numbers are kept in as operands of products: see terms.cuh
    static_assert(sizeof(T) == 2 && COLS % 16 == 0 && (COLS & (COLS - 1)) == 0);
    typedef T Element;
    typedef u32 Fragment[4]; // of a 16 x 16 block, as an operand of mma_m16n8k16

    u32 base;

    __device__ __forceinline__ explicit SharedTile(u32 address) : base(address) {}

    // The address of an element.
    __device__ __forceinline__ u32 at(u32 row, u32 col) const {
        return base + col / PANEL * (ROWS * PITCH) + row * PITCH + ((col % PANEL / 8 ^ key(row)) << 4) + col % 8 * 2;
    }

    // Two neighbouring numbers as operands.
    __device__ __forceinline__ u32 operand_at(int row, int col) const { return at(row, col); }
    static __device__ __forceinline__ void store(u32 address, float x, float y) { shared_store(address, Pair<T>::pack(x, y)); }
    static __device__ __forceinline__ void load(u32 (&terms)[1], u32 address) { terms[0] = shared_load<u32>(address); }

    // From the address of an element to that `row` rows and `col` columns further on, where these share no binary digit with its
    // own row and column, and `col` is a multiple of 8: known numbers cost an instruction or none. The tile begins at a multiple
    // of 128 bytes.
    static __device__ __forceinline__ u32 step(u32 address, u32 row, u32 col) {
        return (address ^ (key(row) << 4) ^ (col % PANEL * 2)) + row * PITCH + col / PANEL * (ROWS * PITCH);
    }

    static __device__ __forceinline__ u32 key(u32 row) { return row / (64 / PANEL) % (PANEL / 8); }
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
__device__ __forceinline__ void load_tile(const Tile& tile, const Rows<typename Tile::Element>& source, int first, int rows,
                                          int cols, int thread) {
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
                copy_async<BYTES>(tile.at(row, col), from, valid);
            else
                shared_store(tile.at(row, col), valid ? *from : T{0});
        }
    }
}

// Makes the rows from `first` on 0. Each of THREADS threads takes its part.
template <int THREADS, class Tile> __device__ __forceinline__ void clear_rows(const Tile& tile, int first, int thread) {
    constexpr int PIECES = Tile::COLS / 8;
#pragma unroll 1
    for (int i = first * PIECES + thread; i < Tile::ROWS * PIECES; i += THREADS)
        shared_store(tile.at(i / PIECES, i % PIECES * 8), make_uint4(0, 0, 0, 0));
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

// Turns a tile that holds numbers of type T into one of bfloat16, in place.
template <class T, int THREADS, int ROWS, int COLS>
__device__ __forceinline__ void to_bf16(const SharedTile<bf16, ROWS, COLS>& tile, int thread) {
    if constexpr (!same<T, bf16>())
        for (int i = thread; i < ROWS * COLS / 2; i += THREADS) {
            u32 place = tile.at(i / (COLS / 2), i % (COLS / 2) * 2), pair = shared_load<u32>(place);
            shared_store(place, Pair<bf16>::pack(Pair<T>::low(pair), Pair<T>::high(pair)));
        }
}

// Writes COLS columns of a tile from `col` on to global memory, `rows` rows, to column `to` and following but not beyond `size`.
// One warp does it: it reads what its own lanes wrote.
template <int VEC, int COLS, class Tile>
__device__ __forceinline__ void store_tile(const Tile& tile, int col, const Rows<typename Tile::Element>& target, int first,
                                           int rows, int to, int size, int lane) {
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
            for (int c = 0; c < min(PIECE, left); c++) there[c] = shared_load<T>(from + c * (u32)sizeof(T));
    }
}

// The 16 x 16 block of a tile at (row, col) as an operand of mma_m16n8k16, as it lies or transposed.
// A left operand is one fragment; a right one is two, of 8 columns each: b[0], b[1] and b[2], b[3].
template <class Tile> __device__ __forceinline__ void load_left(u32 (&a)[4], const Tile& tile, int row, int col, int lane) {
    ldmatrix_x4(a, Tile::step(tile.at(lane & 15, (lane >> 4) * 8), row, col));
}
template <class Tile>
__device__ __forceinline__ void load_left_transposed(u32 (&a)[4], const Tile& tile, int row, int col, int lane) {
    ldmatrix_x4_trans(a, Tile::step(tile.at((lane & 7) + (lane >> 4) * 8, lane & 8), row, col));
}
template <class Tile> __device__ __forceinline__ void load_right(u32 (&b)[4], const Tile& tile, int row, int col, int lane) {
    ldmatrix_x4_trans(b, Tile::step(tile.at(lane & 15, (lane >> 4) * 8), row, col));
}
template <class Tile>
__device__ __forceinline__ void load_right_transposed(u32 (&b)[4], const Tile& tile, int row, int col, int lane) {
    ldmatrix_x4(b, Tile::step(tile.at((lane & 7) + (lane >> 4) * 8, lane & 8), row, col));
}

// d [16 x 16] += a b, both of 16 x 16 numbers of type T.
template <class T = bf16>
__device__ __forceinline__ void mma_16x16(float (&left)[4], float (&right)[4], const u32 (&a)[4], const u32 (&b)[4]) {
    mma_m16n8k16<T>(left, a, b[0], b[1]);
    mma_m16n8k16<T>(right, a, b[2], b[3]);
}

// Two neighbouring accumulators [16 x 8] as one left operand [16 x 16].
__device__ __forceinline__ void pack_left(u32 (&a)[4], const float (&left)[4], const float (&right)[4]) {
    a[0] = Pair<bf16>::pack(left[0], left[1]);
    a[1] = Pair<bf16>::pack(left[2], left[3]);
    a[2] = Pair<bf16>::pack(right[0], right[1]);
    a[3] = Pair<bf16>::pack(right[2], right[3]);
}

} // namespace fla
