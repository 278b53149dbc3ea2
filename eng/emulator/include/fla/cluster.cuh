// On the CPU: what FlaSharp.Kernels/Include/fla/cluster.cuh does with the machine's instructions. Blocks run one after the other,
// in order, so that a block finds what earlier ones have stored.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

template <int SIZE> struct Cluster {
    struct Store { u32 shared; float2 x; };
    static inline std::map<emulator::u64, std::vector<Store>> under_way; // by the block they go to

    static __forceinline__ int rank() { return blockIdx.x % SIZE; }
    static __forceinline__ emulator::u64 block() {
        return blockIdx.x + (emulator::u64)gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    }
    static __forceinline__ void arrive() {}
    static __forceinline__ void wait() {
        for (const Store& store : under_way[block()]) shared_store(store.shared, store.x);
        under_way.erase(block());
    }
    static __forceinline__ void store(u32 shared, int rank, float2 x, Mbarrier) {
        if (!emulator::machine.launch->in_order) emulator::fail("Cluster::store: blocks have to run in order");
        if (rank <= Cluster::rank() || rank >= SIZE)
            emulator::fail("Cluster::store to block %d of %d from block %d", rank, SIZE, Cluster::rank());
        under_way[block() + rank - Cluster::rank()].push_back({shared, x});
    }
};

} // namespace fla
