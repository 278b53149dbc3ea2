// Between tiles in shared memory and plain arrays.
#pragma once
#include "fla/ptx.cuh"

// Fills a tile from an array [ROWS, COLS], element by element; and the other way round. The whole block does it, between
// barriers.
template <class Tile, class T> __device__ inline void fill(const Tile& tile, const T* from) {
    __syncthreads();
    for (int i = threadIdx.x; i < Tile::ROWS * Tile::COLS; i += blockDim.x)
        fla::shared_store(tile.at(i / Tile::COLS, i % Tile::COLS), from[i]);
    __syncthreads();
}
template <class Tile, class T> __device__ inline void dump(const Tile& tile, T* to) {
    __syncthreads();
    for (int i = threadIdx.x; i < Tile::ROWS * Tile::COLS; i += blockDim.x)
        to[i] = fla::shared_load<T>(tile.at(i / Tile::COLS, i % Tile::COLS));
    __syncthreads();
}

// 16 x 16 sums of a product, as mma_16x16 leaves them, to an array of rows of `stride` floats.
__device__ inline void store_sums(float* to, int stride, const float (&left)[4], const float (&right)[4]) {
    int row = threadIdx.x % 32 / 4, col = threadIdx.x % 4 * 2;
    for (int e = 0; e < 4; e++) {
        to[(row + e / 2 * 8) * stride + col + e % 2] = left[e];
        to[(row + e / 2 * 8) * stride + 8 + col + e % 2] = right[e];
    }
}
