// Sums over lanes of a warp.
#pragma once
#include "fla/types.cuh"

namespace fla {

// Sums each of the first COUNT numbers over the lanes that differ in the binary digits MASK, MASK / 2 ... LAST. With every digit,
// as long as more than one number is left, a lane keeps half of them: those from the result on, which become the first ones.
template <int MASK, int LAST, int COUNT, int N> __device__ __forceinline__ int sum_over_lanes(float (&x)[N], int lane) {
    if constexpr (MASK < LAST) {
        return 0;
    } else {
        constexpr int KEPT = COUNT > 1 ? COUNT / 2 : 1;
        bool upper = COUNT > 1 && (lane & MASK);
#pragma unroll
        for (int i = 0; i < KEPT; i++) {
            float kept = upper ? x[i + COUNT - KEPT] : x[i], given = upper ? x[i] : x[i + COUNT - KEPT];
            x[i] = kept + __shfl_xor_sync(~0u, given, MASK);
        }
        return (upper ? KEPT : 0) + sum_over_lanes<MASK / 2, LAST, KEPT>(x, lane);
    }
}

// Of one number for each of N threads that are DISTANCE apart: the one of index n among them gets the sum of x[n].
template <int DISTANCE, int N> __device__ __forceinline__ float sum_apart(float (&x)[N], int index) {
    sum_over_lanes<N / 2 * DISTANCE, DISTANCE, N>(x, index * DISTANCE);
    return x[0];
}

} // namespace fla
