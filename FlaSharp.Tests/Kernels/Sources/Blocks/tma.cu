// Constants: TILE_ROWS, TILE_COLS. sm_90 and later.
#include "Blocks/tiles.cuh"
#include "fla/shared_tile.cuh"
#include "fla/tma.cuh"

using namespace fla;

struct TmaTest {
    TensorMap map; // of a tensor [B, T, H, D]
    bf16* z;
    int head, time, batch;
};

// z [2, TILE_ROWS, TILE_COLS]: the tile from `time` on, and the next one, by the same barrier's next phase.
extern "C" __global__ void __launch_bounds__(128) copied_tiles(const __grid_constant__ TmaTest p) {
    typedef SharedTile<bf16, TILE_ROWS, TILE_COLS> Tile;
    Tile tile(shared_memory());
    Mbarrier full{shared_memory() + Tile::BYTES};
    if (threadIdx.x == 0) {
        full.init(1);
        fence_barriers();
    }
    __syncthreads();
    for (int n = 0; n < 2; n++) {
        if (threadIdx.x == 0) {
            full.arrive_expecting(Tile::BYTES);
            copy_tile(tile, p.map, p.head, p.time + n * TILE_ROWS, p.batch, full);
        }
        full.wait(n);
        dump(tile, p.z + n * TILE_ROWS * TILE_COLS);
        __syncthreads();
    }
}
