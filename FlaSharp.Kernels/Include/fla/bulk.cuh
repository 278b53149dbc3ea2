// Copies of whole stretches of memory by Hopper's copy engine, in the background. Addresses and sizes are multiples of 16 bytes;
// what ordinary stores wrote to shared memory is visible to them after fence_for_products (wgmma.cuh). sm_90 and later.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// To shared memory; the bytes count at a barrier, which someone tells to expect them. By one thread, as all of these.
__device__ __forceinline__ void load_bulk(u32 shared, const void* global, u32 bytes, Mbarrier barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 ::"r"(shared), "l"(global), "r"(bytes), "r"(barrier.address)
                 : "memory");
}
// To global memory; or added to the float32 numbers there.
__device__ __forceinline__ void store_bulk(float* global, u32 shared, u32 bytes) {
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(global), "r"(shared), "r"(bytes) : "memory");
}
__device__ __forceinline__ void add_bulk(float* global, u32 shared, u32 bytes) {
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;"
                 ::"l"(global), "r"(shared), "r"(bytes)
                 : "memory");
}
// Waits until this thread's copies to global memory have read their shared memory; until they are complete.
__device__ __forceinline__ void wait_bulk_read() {
    asm volatile("cp.async.bulk.commit_group; cp.async.bulk.wait_group.read 0;" ::: "memory");
}
__device__ __forceinline__ void wait_bulk() { asm volatile("cp.async.bulk.wait_group 0;" ::: "memory"); }
// Orders copies of both kinds of memory with what this thread reads and writes itself.
__device__ __forceinline__ void fence_bulk() { asm volatile("fence.proxy.async;" ::: "memory"); }

} // namespace fla
