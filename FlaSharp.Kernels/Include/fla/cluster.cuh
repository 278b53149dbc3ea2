// Thread blocks of a cluster, which run at the same time and reach one another's shared memory. sm_90 and later.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// SIZE blocks that follow one another in x.
template <int SIZE> struct Cluster {
    static __device__ __forceinline__ int rank() {
        int x;
        asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(x));
        return x;
    }

    // A barrier of all threads. It shows that the blocks have begun and made the barriers in their shared memory, nothing else.
    static __device__ __forceinline__ void arrive() {
        if (SIZE > 1)
            asm volatile("fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
    static __device__ __forceinline__ void wait() {
        if (SIZE > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }

    // Copies so much shared memory in the background to the same place in another block; the bytes count at its barrier.
    static __device__ __forceinline__ void copy(u32 shared, int rank, u32 bytes, Mbarrier barrier) {
        asm volatile("{ .reg .b32 there, bar; mapa.shared::cluster.u32 there, %0, %2; mapa.shared::cluster.u32 bar, %1, %2;\n"
                     "cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [there], [%0], %3, [bar]; }"
                     ::"r"(shared), "r"(barrier.address), "r"(rank), "r"(bytes)
                     : "memory");
    }
    // Arrives for a warp that has read what another block has copied.
    static __device__ __forceinline__ void release(Mbarrier barrier, int rank) {
        __syncwarp();
        if (opaque(threadIdx.x) % 32 == 0)
            asm volatile("{ .reg .b32 bar; mapa.shared::cluster.u32 bar, %0, %1;\n"
                         "mbarrier.arrive.shared::cluster.b64 _, [bar]; }" ::"r"(barrier.address), "r"(rank)
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
