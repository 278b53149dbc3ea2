// Four neighbouring lanes, which hold rows of mma_m16n8k16's accumulators together.
#pragma once
#include "fla/types.cuh"

namespace fla {

// The largest of their numbers, and the sum: the same bits for all four.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
    return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(~0u, x, 1);
    return x + __shfl_xor_sync(~0u, x, 2);
}

// Lane i's word j becomes lane j's word i.
__device__ __forceinline__ void quad_transpose(u32 (&words)[4], int lane) {
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (i & bit) continue;
            u32 &low = words[i], &high = words[i | bit];
            u32 other = __shfl_xor_sync(~0u, lane & bit ? low : high, bit);
            if (lane & bit)
                low = other;
            else
                high = other;
        }
}

} // namespace fla
