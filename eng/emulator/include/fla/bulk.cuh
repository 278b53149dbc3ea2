// On the CPU: what FlaSharp.Kernels/Include/fla/bulk.cuh does with the machine's instructions. Copies happen at once.
#pragma once
#include "fla/mbarrier.cuh"

namespace fla {

// The address of a stretch of shared memory, all of which exists.
inline emulator::u8* bulk_pointer(const char* operation, u32 shared, u32 bytes) {
    emulator::shared_pointer(operation, shared + bytes - 16, 16);
    return emulator::shared_pointer(operation, shared, 16);
}

inline void load_bulk(u32 shared, const void* global, u32 bytes, Mbarrier barrier) {
    if (shared % 16 || (u64)global % 16 || bytes % 16) emulator::fail("load_bulk: no whole 16 bytes");
    memcpy(bulk_pointer("load_bulk", shared, bytes), global, bytes);
    barrier.complete(bytes);
}
inline void store_bulk(float* global, u32 shared, u32 bytes) {
    if (shared % 16 || (u64)global % 16 || bytes % 16) emulator::fail("store_bulk: no whole 16 bytes");
    for (u32 i = 0; i < bytes; i += 2) emulator::check_fenced("store_bulk", shared + i);
    memcpy(global, bulk_pointer("store_bulk", shared, bytes), bytes);
}
inline void add_bulk(float* global, u32 shared, u32 bytes) {
    if (shared % 16 || (u64)global % 16 || bytes % 16) emulator::fail("add_bulk: no whole 16 bytes");
    for (u32 i = 0; i < bytes; i += 2) emulator::check_fenced("add_bulk", shared + i);
    const float* from = (const float*)bulk_pointer("add_bulk", shared, bytes);
    for (u32 i = 0; i < bytes / 4; i++) global[i] += from[i];
}
inline void wait_bulk_read() {}
inline void wait_bulk() {}
inline void fence_bulk() {}

} // namespace fla
