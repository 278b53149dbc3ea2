// Constants: PRODUCT_ROWS, PRODUCT_COLS, PRODUCT_DEPTH, BLOCK_WARPS.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/warp_tile.cuh"

using namespace fla;

constexpr int ROWS = PRODUCT_ROWS, COLS = PRODUCT_COLS, DEPTH = PRODUCT_DEPTH;
constexpr int WARPS = BLOCK_WARPS, THREADS = 32 * WARPS;

// z [ROWS, COLS] = 2 x y with x [ROWS, DEPTH] and y [DEPTH, COLS], by way of a FloatTile; w [ROWS, COLS]: the places there, in
// bytes.
extern "C" __global__ void __launch_bounds__(THREADS) warp_tile_product(const __grid_constant__ BlockTest p) {
    SharedTile<bf16, ROWS, DEPTH> x(shared_memory());
    SharedTile<bf16, DEPTH, COLS> y(shared_memory() + x.BYTES);
    FloatTile<ROWS, COLS> sums(shared_memory() + x.BYTES + y.BYTES);
    fill(x, static_cast<const bf16*>(p.x));
    fill(y, static_cast<const bf16*>(p.y));
    int lane = threadIdx.x % 32;
    WarpTile<ROWS, COLS, WARPS> tile(threadIdx.x / 32, lane);
    for (int time = 0; time < 2; time++)
        tile.add<DEPTH>([&](u32(&a)[4], int row, int k) { load_left(a, x, row, k, lane); },
                        [&](u32(&b)[4], int k, int col) { load_right(b, y, k, col, lane); });
    tile.visit([&](int row, int col, float& left, float& right) { shared_store(sums.at(row, col), make_float2(left, right)); });
    __syncthreads();
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        static_cast<float*>(p.z)[i] = shared_load<float>(sums.at(i / COLS, i % COLS));
        static_cast<int*>(p.w)[i] = sums.at(i / COLS, i % COLS) - sums.base;
    }
}
