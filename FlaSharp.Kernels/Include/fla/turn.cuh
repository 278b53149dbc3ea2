// Blocks that take turns: each one waits for those whose number is lower, which must begin no later than it does.
#pragma once
#include "fla/types.cuh"

namespace fla {

// Counts in global memory, from 0 on.
struct Turn {
    int* count;

    // Waits for turn `n`, and sees what was written in the turns before.
    __device__ __forceinline__ void wait(int n) const {
        int now;
        do
            asm volatile("ld.acquire.gpu.global.b32 %0, [%1];" : "=r"(now) : "l"(count) : "memory");
        while (now != n);
    }
    // Ends turn `n`, with what this thread wrote, and those that it met at a barrier.
    __device__ __forceinline__ void end(int n) const {
        asm volatile("st.release.gpu.global.b32 [%0], %1;" ::"l"(count), "r"(n + 1) : "memory");
    }
};

} // namespace fla
