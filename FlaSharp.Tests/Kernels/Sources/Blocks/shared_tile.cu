// Constants: TYPE of 16 bits, TILE_ROWS, TILE_COLS, VECTOR.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/shared_tile.cuh"

using namespace fla;

constexpr int THREADS = 128, ROWS = TILE_ROWS, COLS = TILE_COLS;
typedef TYPE T;
typedef SharedTile<T, ROWS, COLS> Tile;

// z [2, ROWS, COLS]: how far from its tile's beginning an element lies, swizzled, and plain in float32.
extern "C" __global__ void __launch_bounds__(THREADS) tile_addresses(const __grid_constant__ BlockTest p) {
    Tile tile(shared_memory());
    PlainTile<float, ROWS, COLS> plain(shared_memory());
    int* z = static_cast<int*>(p.z);
    for (int i = threadIdx.x; i < ROWS * COLS; i += THREADS) {
        z[i] = tile.at(i / COLS, i % COLS) - shared_memory();
        z[ROWS * COLS + i] = plain.at(i / COLS, i % COLS) - shared_memory();
    }
}

// rows x cols of x from its row 3 on, rows `stride` apart, to a tile and from there to z [ROWS, COLS]; and as many to the same
// rows of w, 8 columns later.
extern "C" __global__ void __launch_bounds__(THREADS) tile_copy(const __grid_constant__ BlockTest p) {
    constexpr int PART = COLS < 64 ? COLS : 64;
    Tile tile(shared_memory());
    Rows<T> source{const_cast<T*>(static_cast<const T*>(p.x)), p.stride}, target{static_cast<T*>(p.w), p.stride};
    load_tile<VECTOR, THREADS>(tile, source, 3, p.rows, p.cols, threadIdx.x);
    copy_async_commit();
    copy_async_wait<0>();
    dump(tile, static_cast<T*>(p.z));
    if (threadIdx.x < 32)
        for (int col = 0; col < COLS; col += PART)
            store_tile<VECTOR == 8 ? 8 : 1, PART>(tile, col, target, 3, p.rows, col + 8, p.cols + 8, threadIdx.x);
}

// z [ROWS, COLS] = x in bfloat16, by way of a tile.
extern "C" __global__ void __launch_bounds__(THREADS) tile_to_bf16(const __grid_constant__ BlockTest p) {
    fill(Tile(shared_memory()), static_cast<const T*>(p.x));
    SharedTile<bf16, ROWS, COLS> tile(shared_memory());
    to_bf16<T, THREADS>(tile, threadIdx.x);
    dump(tile, static_cast<bf16*>(p.z));
}
