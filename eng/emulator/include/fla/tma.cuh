// On the CPU: what FlaSharp.Kernels/Include/fla/tma.cuh does with the machine's instructions. What is copied is NaN until someone
// has waited for it.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// As emulate.tensor_map makes it: of the dimensions [D, H, T, B].
struct alignas(64) TensorMap {
    const u16* data;
    i64 strides[4]; // in elements
    int sizes[4];
    int columns, rows; // of the box
    u64 unused[8];
};

inline void prefetch_map(const TensorMap&) {}
inline void fence_barriers() {}

inline void copy_box(u32 shared, const TensorMap& map, int column, int head, int time, int batch, Mbarrier barrier) {
    u32 width = map.columns * 2; // of the swizzle's pattern
    if (shared % (8 * width)) emulator::fail("copy_box: the address 0x%x is no multiple of %u", shared, 8 * width);
    for (int row = 0; row < map.rows; row++)
        for (int col = 0; col < map.columns; col++) {
            const int at[4] = {column + col, head, time + row, batch};
            i64 place = 0;
            bool inside = true;
            for (int i = 0; i < 4; i++) place += at[i] * map.strides[i], inside = inside && at[i] >= 0 && at[i] < map.sizes[i];
            u32 address = shared + row * width + col * 2;
            address ^= (address >> 7 & (width / 16 - 1)) << 4;
            u16 bits = inside ? map.data[place] : 0;
            memset(emulator::shared_pointer("copy_box", address, 2), 0xff, 2);
            Mbarrier::under_way[barrier.address].push_back({address, bits});
        }
    barrier.complete(map.rows * width);
}
template <class Tile>
inline void copy_tile(const Tile& tile, const TensorMap& map, int head, int time, int batch, Mbarrier barrier) {
    for (int column = 0; column < Tile::COLS; column += Tile::PANEL)
        copy_box(tile.base + column * (Tile::ROWS * 2), map, column, head, time, batch, barrier);
}

} // namespace fla
