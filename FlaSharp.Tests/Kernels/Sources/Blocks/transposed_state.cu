// Constants: KEYS, TILES: 16 value channels each, of a warp.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/transposed_state.cuh"

using namespace fla;

constexpr int WARPS = 2, THREADS = 32 * WARPS, K = KEYS, ROW_TILES = TILES, V = WARPS * ROW_TILES * 16, TOKENS = 32;

// The state x [rows, cols] of keys and values, or 0 if x is null, times 2^-(key % 4), and y^T x for y [TOKENS, K + V] of keys and
// values, goes to z [rows, cols]; and all of it, times that factor again, in bfloat16 to w, [V / 8, K / 8] blocks of 8 values x 8
// keys.
extern "C" __global__ void __launch_bounds__(THREADS) state_update(const __grid_constant__ BlockTest p) {
    SharedTile<bf16, TOKENS, K> keys(shared_memory());
    SharedTile<bf16, TOKENS, V> values(shared_memory() + keys.BYTES);
    u32 factors = shared_memory() + keys.BYTES + values.BYTES;
    fill(keys, static_cast<const bf16*>(p.y));
    fill(values, static_cast<const bf16*>(p.y) + TOKENS * K);
    for (int k = threadIdx.x; k < K; k += THREADS) shared_store(factors + 4 * k, 1.f / (1 << k % 4));
    __syncthreads();

    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, value = warp * ROW_TILES * 16;
    TransposedState<ROW_TILES, K> state;
    state.load(static_cast<const float*>(p.x), p.rows, p.cols, value, lane);
    state.scale(factors, lane);
    for (int token = 0; token < TOKENS; token += 16) {
        u32 a[ROW_TILES][4];
        for (int m = 0; m < ROW_TILES; m++) load_left_transposed(a[m], values, token, value + m * 16, lane);
        state.add(a, keys, token, lane);
    }
    state.store(static_cast<float*>(p.z), p.rows, p.cols, value, lane);
    state.save(static_cast<u32*>(p.w) + saved_pair<K>(value, 0, lane), factors, lane);
}
