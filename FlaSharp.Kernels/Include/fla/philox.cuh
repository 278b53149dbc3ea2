// Random numbers that depend on a key and on where they are used, not on who draws them in which order: Philox4x32-10 of
// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once
#include "fla/types.cuh"

namespace fla {

// Replaces a counter by four random words.
__device__ __forceinline__ void philox(u32 (&words)[4], u64 key) {
    u32 low = (u32)key, high = (u32)(key >> 32);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 even = (u64)0xd2511f53u * words[0], odd = (u64)0xcd9e8d57u * words[2];
        words[0] = (u32)(odd >> 32) ^ words[1] ^ low;
        words[1] = (u32)odd;
        words[2] = (u32)(even >> 32) ^ words[3] ^ high;
        words[3] = (u32)even;
        low += 0x9e3779b9u, high += 0xbb67ae85u;
    }
}

} // namespace fla
