// Constants: TYPE of 16 bits.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/shared_tile.cuh"

using namespace fla;

constexpr int THREADS = 32, SIZE = 64, ROW = 16, COL = 32; // where the 16 x 16 operands lie in tiles [SIZE, SIZE]
typedef TYPE T;
typedef SharedTile<T, SIZE, SIZE> Tile;

// z [4, 16, 16] = a b, a^T b, a b^T, a^T b^T for the operands a and b of x and y [SIZE, SIZE].
extern "C" __global__ void __launch_bounds__(THREADS) matrix_products(const __grid_constant__ BlockTest p) {
    Tile x(shared_memory()), y(shared_memory() + Tile::BYTES);
    fill(x, static_cast<const T*>(p.x));
    fill(y, static_cast<const T*>(p.y));
    int lane = threadIdx.x;
    for (int form = 0; form < 4; form++) {
        u32 a[4], b[4];
        float left[4] = {}, right[4] = {};
        if (form & 1)
            load_left_transposed(a, x, ROW, COL, lane);
        else
            load_left(a, x, ROW, COL, lane);
        if (form & 2)
            load_right_transposed(b, y, ROW, COL, lane);
        else
            load_right(b, y, ROW, COL, lane);
        mma_m16n8k16<T>(left, a, b[0], b[1]);
        mma_m16n8k16<T>(right, a, b[2], b[3]);
        store_sums(static_cast<float*>(p.z) + form * 256, 16, left, right);
    }
}

// z [16, 16] = (a b) b + a b: a product that becomes an operand, and sums that go on.
extern "C" __global__ void __launch_bounds__(THREADS) chained_products(const __grid_constant__ BlockTest p) {
    SharedTile<bf16, SIZE, SIZE> x(shared_memory()), y(shared_memory() + Tile::BYTES);
    fill(x, static_cast<const bf16*>(p.x));
    fill(y, static_cast<const bf16*>(p.y));
    u32 a[4], b[4];
    float left[4] = {}, right[4] = {};
    load_left(a, x, ROW, COL, threadIdx.x);
    load_right(b, y, ROW, COL, threadIdx.x);
    mma_16x16(left, right, a, b);
    pack_left(a, left, right);
    mma_16x16(left, right, a, b);
    store_sums(static_cast<float*>(p.z), 16, left, right);
}

// z [8, 8] = x^T in 16 bits of any kind; w [4, 8, 8] = the 8 x 8 matrices of an operand as a lane holds them.
extern "C" __global__ void __launch_bounds__(THREADS) transposed_matrices(const __grid_constant__ BlockTest p) {
    int lane = threadIdx.x;
    static_cast<u32*>(p.z)[lane] = transpose_8x8(static_cast<const u32*>(p.x)[lane]);
    Tile y(shared_memory());
    fill(y, static_cast<const T*>(p.y));
    u32 a[4];
    load_left(a, y, ROW, COL, lane);
    for (int i = 0; i < 4; i++) static_cast<u32*>(p.w)[i * 32 + lane] = a[i];
}
