// On the CPU: what FlaSharp.Kernels/Include/fla/cluster.cuh does with the machine's instructions. Copies happen at once. Where blocks
// run one after the other, they have to do so in order: a block finds what earlier ones have stored.
#pragma once
#include "fla/bulk.cuh"

namespace fla {

template <int SIZE> struct Cluster {
    struct Store { u32 shared; float2 x; Mbarrier barrier; };
    static inline std::map<emulator::u64, std::vector<Store>> under_way; // by the block they go to

    static __forceinline__ bool together() { return SIZE > 1 && emulator::machine.cluster.size() == SIZE; }
    static __forceinline__ int rank() { return blockIdx.x % SIZE; }
    static __forceinline__ emulator::u64 block() {
        return blockIdx.x + (emulator::u64)gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    }
    static __forceinline__ void arrive() {
        if (together()) emulator::cluster_arrive();
    }
    static __forceinline__ void wait() {
        if (together()) return emulator::cluster_wait();
        if (SIZE > 1) __syncthreads(); // barriers are made
        for (const Store& store : under_way[block()]) {
            shared_store(store.shared, store.x);
            store.barrier.complete(sizeof store.x);
        }
        under_way.erase(block());
    }
    static __forceinline__ void store(u32 shared, int rank, float2 x, Mbarrier barrier) {
        if (!emulator::machine.launch->in_order) emulator::fail("Cluster::store: blocks have to run in order");
        if (rank <= Cluster::rank() || rank >= SIZE)
            emulator::fail("Cluster::store to block %d of %d from block %d", rank, SIZE, Cluster::rank());
        under_way[block() + rank - Cluster::rank()].push_back({shared, x, barrier});
    }
    static __forceinline__ void check_other(const char* operation, int rank) {
        int own = emulator::machine.rank;
        if (!together() || rank == own || rank < 0 || rank >= SIZE)
            emulator::fail("%s: block %d of %d from block %d", operation, rank, SIZE, own);
    }
    static __forceinline__ void copy(u32 shared, u32 bytes, int rank, Mbarrier barrier) {
        check_other("Cluster::copy", rank);
        if (shared % 16 || bytes % 16) emulator::fail("Cluster::copy: no whole 16 bytes");
        for (u32 i = 0; i < bytes; i += 2) emulator::check_fenced("Cluster::copy", shared + i);
        emulator::u8* from = bulk_pointer("Cluster::copy", shared, bytes);
        memcpy(emulator::machine.cluster[rank].shared_base + (from - emulator::machine.shared_base), from, bytes);
        emulator::mbarrier_complete(rank, emulator::address_of(rank, barrier.address), bytes);
    }
    static __forceinline__ void arrive_warp(int rank, Mbarrier barrier) {
        __syncwarp();
        check_other("Cluster::arrive_warp", rank);
        if (threadIdx.x % 32 == 0) emulator::mbarrier_arrive(rank, emulator::address_of(rank, barrier.address), 0);
    }
};

} // namespace fla
