// On the CPU: what FlaSharp.Kernels/Include/fla/mbarrier.cuh does with the machine's instructions.
#pragma once
#include "fla/ptx.cuh"

namespace fla {

struct Mbarrier {
    static constexpr int BYTES = 8;
    u32 address;

    __forceinline__ void init(int count) const { emulator::mbarrier_init(address, count); }
    __forceinline__ void arrive() const { emulator::mbarrier_arrive(address); }
    __forceinline__ void arrive_expecting(u32 bytes) const { emulator::mbarrier_arrive(address, bytes); }
    __forceinline__ void arrive_warp() const {
        __syncwarp();
        if (threadIdx.x % 32 == 0) arrive();
    }
    // So many bytes have come.
    __forceinline__ void complete(u32 bytes) const { emulator::mbarrier_complete(emulator::machine.rank, address, bytes); }
    __forceinline__ void wait(int n) const { emulator::mbarrier_wait(address, n & 1); }
};

} // namespace fla
