// Parts of a SharedTile as Hopper's products take them from shared memory: 64-bit descriptions.
#pragma once
#include "fla/shared_tile.cuh"

namespace fla {

// An address as a description has it: in units of 16 bytes, without what tells the blocks of a cluster apart.
__device__ __forceinline__ u32 address_in_operand(u32 address) { return address % (1 << 18) / 16; }

// An operand [.. x 16] in a SharedTile, whose swizzle is that of its panel's width; the tile begins at a multiple of 1024 bytes.
template <class Tile> __device__ __forceinline__ u64 operand_at(const Tile& tile, u32 row, u32 col, u32 lead) {
    constexpr u32 SWIZZLE = Tile::PANEL == 64   ? 1
                            : Tile::PANEL == 32 ? 2
                                                : 3,
                  STRIDE = 8 * Tile::PITCH; // from 8 rows to the next 8
    // In units of 16 bytes from the start, so that from one operand to another it is a single addition.
    u32 place = (lead / 16 << 16) + address_in_operand(tile.base) + col / Tile::PANEL * (Tile::ROWS * Tile::PITCH / 16) +
                row * (Tile::PITCH / 16) + col % Tile::PANEL / 8;
    return (u64)(SWIZZLE << 30 | STRIDE / 16) << 32 | place;
}
// Its rows are the tile's from `row` on, a multiple of 8; its 16 columns begin at `col`.
template <class Tile> __device__ __forceinline__ u64 operand(const Tile& tile, u32 row, u32 col) {
    return operand_at(tile, row, col, 16); // within a panel: nothing leads on
}
// Its rows are the tile's columns from `col` on, a multiple of a panel; its 16 columns are the tile's rows from `row` on.
template <class Tile> __device__ __forceinline__ u64 operand_transposed(const Tile& tile, u32 row, u32 col) {
    return operand_at(tile, row, col, Tile::ROWS * Tile::PITCH); // from panel to panel
}

// An operand in blocks of 8 x 8 numbers, each of 128 bytes: `lead` bytes from block to block along its 16 columns, `stride` along
// its rows. The rows of a block are its own or, of a transposed one, its columns.
constexpr u32 BLOCK_BYTES = 128;
__device__ __forceinline__ u64 block_operand(u32 address, u32 lead, u32 stride) {
    return (u64)(stride / 16) << 32 | (lead / 16 << 16) + address_in_operand(address);
}

} // namespace fla
