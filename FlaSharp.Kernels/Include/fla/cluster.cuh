// Thread blocks of a cluster, which run at the same time and reach one another's shared memory. sm_90 and later.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// SIZE blocks that follow one another in x.
template <int SIZE> struct Cluster {
    static __device__ __forceinline__ int rank() { return blockIdx.x % SIZE; }

    // A barrier of all threads. It shows that the blocks have begun and made the barriers in their shared memory, nothing else.
    static __device__ __forceinline__ void arrive() {
        if (SIZE > 1)
            asm volatile("fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
    }
    static __device__ __forceinline__ void wait() {
        if (SIZE > 1) asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
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
