// Copies of whole boxes of a tensor into shared memory by Hopper's copy engine, in the background. sm_90 and later.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// How a tensor [B, T, H, D] lies in memory, and the box that a copy takes of it: up to 64 numbers wide, of one head and batch
// row, swizzled as a SharedTile's panel. Made on the host; in a kernel's parameters.
struct alignas(64) TensorMap {
    u64 words[16];
};

// By one thread, before its first copy.
__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Shows barriers to the copy engine: by the thread that made them, before the others know them.
__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Copies the box that begins at these places of the dimensions; what lies outside of the tensor becomes 0. Its bytes, with those
// zeros, count at a barrier, which someone tells to expect them. By one thread.
__device__ __forceinline__ void copy_box(u32 shared, const TensorMap& map, int column, int head, int time, int batch,
                                         Mbarrier barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared),
        "l"(&map), "r"(column), "r"(head), "r"(time), "r"(batch), "r"(barrier.address)
        : "memory");
}
// Copies the rows from `time` on, all of a SharedTile, panel by panel.
template <class Tile>
__device__ __forceinline__ void copy_tile(const Tile& tile, const TensorMap& map, int head, int time, int batch,
                                          Mbarrier barrier) {
#pragma unroll
    for (int column = 0; column < Tile::COLS; column += Tile::PANEL)
        copy_box(tile.base + column * (Tile::ROWS * 2), map, column, head, time, batch, barrier);
}

} // namespace fla
