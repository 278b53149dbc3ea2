// On the CPU: what FlaSharp.Kernels/Include/fla/turn.cuh does with the machine's instructions. Blocks run one after the other, so
// a turn that has not come never comes.
#pragma once
#include "fla/types.cuh"

namespace fla {

struct Turn {
    int* count;

    __forceinline__ void wait(int n) const {
        if (*count != n) emulator::fail("turn %d, but the count is %d", n, *count);
    }
    __forceinline__ void end(int n) const { *count = n + 1; }
};

} // namespace fla
