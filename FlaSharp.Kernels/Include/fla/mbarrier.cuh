// Barriers in shared memory: who arrives goes on; who waits sees what those who arrived had written. sm_80 and later.
#pragma once
#include "fla/ptx.cuh"

namespace fla {

struct Mbarrier {
    static constexpr int BYTES = 8;
    u32 address; // a multiple of BYTES

    // By one thread; the others come after a __syncthreads. Every phase, from 0 on, ends with its arrival number `count`.
    __device__ __forceinline__ void init(int count) const {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(address), "r"(count) : "memory");
    }
    __device__ __forceinline__ void arrive() const {
        asm volatile("{ .reg .b64 state; mbarrier.arrive.shared.b64 state, [%0]; }" ::"r"(address) : "memory");
    }
    // Arrives, and lets the phase end only after so many bytes of copies by copy_box.
    __device__ __forceinline__ void arrive_expecting(u32 bytes) const {
        asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(address), "r"(bytes)
                     : "memory");
    }
    // One arrival for the warp, with what all of its threads wrote.
    __device__ __forceinline__ void arrive_warp() const {
        __syncwarp();
        if (opaque(threadIdx.x) % 32 == 0) arrive();
    }
    // Waits until phase `n` is over. Phase -1 is from the start. Nobody may be two phases behind: of n only the parity counts.
    __device__ __forceinline__ void wait(int n) const {
        while (!is_over(n & 1)) {}
    }

private:
    __device__ __forceinline__ bool is_over(u32 parity) const {
        u32 over;
#if __CUDA_ARCH__ >= 900 // sleeps meanwhile
        asm volatile("{ .reg .pred p; mbarrier.try_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#else
        asm volatile("{ .reg .pred p; mbarrier.test_wait.parity.shared.b64 p, [%1], %2; selp.u32 %0, 1, 0, p; }"
#endif
                     : "=r"(over)
                     : "r"(address), "r"(parity)
                     : "memory");
        return over != 0;
    }
};

} // namespace fla
