// Thread blocks of a cluster, which run at the same time and reach one another's shared memory. sm_90 and later.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// SIZE blocks; `rank` counts them.
template <int SIZE> struct Cluster {
    // Of blocks that follow one another in x.
    static __device__ __forceinline__ int rank() { return blockIdx.x % SIZE; }

    // A barrier of all threads. It shows that the blocks have begun and made the barriers in their shared memory, nothing else.
    static __device__ __forceinline__ void arrive() {
        if constexpr (SIZE > 1)
            asm volatile("fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
    static __device__ __forceinline__ void wait() {
        if constexpr (SIZE > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }

    // Copies shared memory in the background to the same place in another block. The bytes, a multiple of 16, count at that
    // block's barrier. By one thread, after fences of those that wrote them.
    static __device__ __forceinline__ void copy(u32 shared, u32 bytes, int rank, Mbarrier barrier) {
        asm volatile("{ .reg .b32 there, bar; mapa.shared::cluster.u32 there, %0, %2; mapa.shared::cluster.u32 bar, %1, %2;\n"
                     "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%0], %3, [bar]; }"
                     ::"r"(shared), "r"(barrier.address), "r"(rank), "r"(bytes)
                     : "memory");
    }
    // Arrives at another block's barrier, once for a warp that has read what that block wrote.
    static __device__ __forceinline__ void arrive_warp(int rank, Mbarrier barrier) {
        __syncwarp();
        if (opaque(threadIdx.x) % 32 == 0)
            asm volatile("{ .reg .b32 bar; mapa.shared::cluster.u32 bar, %0, %1; mbarrier.arrive.shared::cluster.b64 _, [bar]; }"
                         ::"r"(barrier.address), "r"(rank)
                         : "memory");
    }

    // In the background, to the place in a later block that this address is in this one. The bytes count at that block's barrier.
    static __device__ __forceinline__ void store(u32 shared, int rank, float2 x, Mbarrier barrier) {
        asm volatile("{ .reg .b32 there, bar; mapa.shared::cluster.u32 there, %0, %2; mapa.shared::cluster.u32 bar, %1, %2;\n"
                     "st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [there], {%3, %4}, [bar]; }"
                     ::"r"(shared), "r"(barrier.address), "r"(rank), "f"(x.x), "f"(x.y)
                     : "memory");
    }
};

} // namespace fla
