// Constants: PRODUCT_COLS, PRODUCT_DEPTH; LEFT_REGISTERS, LEFT_TRANSPOSED, RIGHT_TRANSPOSED: how the operands come. sm_90a only.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/wgmma.cuh"

using namespace fla;

constexpr int GROUPS = 2, THREADS = 128 * GROUPS, ROWS = 64 * GROUPS, COLS = PRODUCT_COLS, DEPTH = PRODUCT_DEPTH;

template <bool TRANSPOSED, int R, int C> struct TileOf { typedef SharedTile<bf16, R, C> Type; };
template <int R, int C> struct TileOf<true, R, C> { typedef SharedTile<bf16, C, R> Type; };
typedef TileOf<LEFT_TRANSPOSED, ROWS, DEPTH>::Type LeftTile;
typedef TileOf<!RIGHT_TRANSPOSED, DEPTH, COLS>::Type RightTile;

// z [ROWS, COLS] = 1 + 2 a b with a [ROWS, DEPTH] and b [DEPTH, COLS]: groups of four warps have 64 rows each. x is a, or a^T if
// it is the transposed operand; y is b^T, or b.
extern "C" __global__ void __launch_bounds__(THREADS, 1) warpgroup_products(const __grid_constant__ BlockTest p) {
    LeftTile x(shared_memory());
    RightTile y(shared_memory() + LeftTile::BYTES);
    fill(x, static_cast<const bf16*>(p.x));
    fill(y, static_cast<const bf16*>(p.y));
    fence_for_products();
    __syncthreads();

    int group = threadIdx.x / 128, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    float d[COLS / 8][4];
    u32 left[DEPTH / 16][4];
    for (int n = 0; n < COLS / 8; n++)
        for (int e = 0; e < 4; e++) d[n][e] = 1;
    for (int k = 0; k < DEPTH; k += 16) {
        if (LEFT_TRANSPOSED)
            load_left_transposed(left[k / 16], x, k, warp * 16, lane);
        else
            load_left(left[k / 16], x, warp * 16, k, lane);
    }
    begin_products(d, left);
#pragma unroll
    for (int time = 0; time < 2; time++) {
#pragma unroll
        for (int k = 0; k < DEPTH; k += 16) {
            u64 a = LEFT_TRANSPOSED ? operand_transposed(x, k, group * 64) : operand(x, group * 64, k);
            u64 b = RIGHT_TRANSPOSED ? operand_transposed(y, k, 0) : operand(y, 0, k);
            if (LEFT_REGISTERS)
                product<RIGHT_TRANSPOSED>(d, left[k / 16], b);
            else
                product<LEFT_TRANSPOSED, RIGHT_TRANSPOSED>(d, a, b);
        }
        commit_products();
    }
    wait_products<0>(d);
    for (int n = 0; n < COLS / 8; n += 2)
        store_sums(static_cast<float*>(p.z) + warp * 16 * COLS + n * 8, COLS, d[n], d[n + 1]);
}

// z [16, 16] = x^T for x [16, 16] of 16 bits of any kind.
extern "C" __global__ void __launch_bounds__(32) stored_matrices(const __grid_constant__ BlockTest p) {
    typedef SharedTile<bf16, 16, 16> Tile;
    Tile x(shared_memory()), y(shared_memory() + 1024);
    fill(x, static_cast<const bf16*>(p.x));
    int lane = threadIdx.x;
    u32 matrices[4];
    load_left(matrices, x, 0, 0, lane);
    stmatrix_x4_trans(y.at(lane / 16 * 8 + lane % 8, lane & 8), matrices);
    dump(y, static_cast<bf16*>(p.z));
}
