// On the CPU: what FlaSharp.Kernels/Include/fla/mbarrier.cuh does with the machine's instructions.
#pragma once
#include "fla/ptx.cuh"

namespace fla {

struct Mbarrier {
    static constexpr int BYTES = 8;
    struct Copy { u32 shared; u16 bits; };
    static inline std::map<u32, std::vector<Copy>> under_way; // by the barrier that counts them: who waits there finds them done
    u32 address;

    __forceinline__ void init(int count) const {
        under_way.erase(address);
        emulator::mbarrier_init(address, count);
    }
    __forceinline__ void arrive() const { emulator::mbarrier_arrive(address); }
    // Copies of a block that runs alone are over before another of its threads runs: their bytes need not be counted.
    static __forceinline__ bool counts() { return emulator::machine.cluster.size() > 1; }
    __forceinline__ void arrive_expecting(u32 bytes) const { emulator::mbarrier_arrive(address, counts() ? bytes : 0); }
    __forceinline__ void arrive_warp() const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive();
    }
    // So many bytes have come.
    __forceinline__ void complete(u32 bytes) const {
        if (counts()) emulator::mbarrier_complete(emulator::machine.rank, address, bytes);
    }
    __forceinline__ void wait(int n) const {
        emulator::mbarrier_wait(address, n & 1);
        for (const Copy& copy : under_way[address]) memcpy(emulator::shared_pointer("copy_box", copy.shared, 2), &copy.bits, 2);
        under_way.erase(address);
    }
};

} // namespace fla
