// Work on dense tensors element by element.
#pragma once
#include "fla/types.cuh"

namespace fla {

// Calls body(Number<N>, first) for N neighbours at a time: MOST where all is aligned to as many, the rest one by one.
template <int N> struct Number { static constexpr int value = N; };
template <int BLOCK_SIZE, int MOST, class Body>
__device__ __forceinline__ void for_each_vector(i64 count, int aligned, Body body) {
    i64 thread = (i64)blockIdx.x * BLOCK_SIZE + threadIdx.x, threads = (i64)gridDim.x * BLOCK_SIZE;
    i64 vectors = aligned ? count / MOST : 0;
    for (i64 i = thread; i < vectors; i += threads) body(Number<MOST>(), i * MOST);
    for (i64 i = vectors * MOST + thread; i < count; i += threads) body(Number<1>(), i);
}

} // namespace fla
