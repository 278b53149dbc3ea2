// The machine's instructions that C++ has no words for, one function each. Portable: sm_80 and later.
#pragma once
#include "fla/types.cuh"

namespace fla {

constexpr float LOG2E = 1.4426950408889634f;
constexpr float LN2 = 0.6931471805599453f;

// 2^x. 0 for x = -inf; results below the normal range are 0.
__device__ __forceinline__ float pow2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x, to about an ulp; 0 where that is below the normal range.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// The larger one, NaN if one is NaN: an ordinary max would hide it.
__device__ __forceinline__ float max_nan(float a, float b) {
    float c;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
    return c;
}

// Of two pairs.
template <class T> __device__ __forceinline__ u32 max_nan_pair(u32 a, u32 b) {
    u32 c;
    if constexpr (same<T, bf16>())
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    else
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(c) : "r"(a), "r"(b));
    return c;
}

// Brings the line of global memory at an address into the L2 cache, without waiting for it.
__device__ __forceinline__ void prefetch(const void* global) { asm volatile("prefetch.global.L2 [%0];" ::"l"(global)); }

// The same value, of which the compiler knows nothing more. In a loop, what is computed from it stays in the loop: registers that
// addresses would occupy throughout are worth more than the few instructions.
template <class T> __device__ __forceinline__ T* opaque(T* p) {
    asm volatile("" : "+l"(p));
    return p;
}
// Of global memory, which the compiler still knows it to be.
template <class T> __device__ __forceinline__ T* opaque_global(T* p) {
    u64 address = __cvta_generic_to_global(p);
    asm volatile("" : "+l"(address));
    return static_cast<T*>(__cvta_global_to_generic(address));
}
__device__ __forceinline__ int opaque(int x) {
    asm volatile("" : "+r"(x));
    return x;
}

// Shared memory is addressed by 32-bit numbers: half the registers of pointers.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
// The block's dynamic shared memory as a structure; and its address, a multiple of 1024.
template <class T> __device__ __forceinline__ T& shared_memory_as() {
    extern __shared__ __align__(1024) unsigned char memory[];
    return *reinterpret_cast<T*>(memory);
}
__device__ __forceinline__ u32 shared_memory() { return shared_address(&shared_memory_as<unsigned char>()); }
template <class T> __device__ __forceinline__ T shared_load(u32 address) {
    T x;
    if constexpr (sizeof(T) == 2)
        asm volatile("ld.shared.b16 %0, [%1];" : "=h"(reinterpret_cast<u16&>(x)) : "r"(address) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(reinterpret_cast<u32&>(x)) : "r"(address) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("ld.shared.v2.b32 {%0, %1}, [%2];"
                     : "=r"(reinterpret_cast<uint2&>(x).x), "=r"(reinterpret_cast<uint2&>(x).y)
                     : "r"(address)
                     : "memory");
    else
        asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(reinterpret_cast<uint4&>(x).x), "=r"(reinterpret_cast<uint4&>(x).y),
                       "=r"(reinterpret_cast<uint4&>(x).z), "=r"(reinterpret_cast<uint4&>(x).w)
                     : "r"(address)
                     : "memory");
    return x;
}
template <class T> __device__ __forceinline__ void shared_store(u32 address, T x) {
    if constexpr (sizeof(T) == 2)
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(address), "h"(reinterpret_cast<u16&>(x)) : "memory");
    else if constexpr (sizeof(T) == 4)
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(address), "r"(reinterpret_cast<u32&>(x)) : "memory");
    else if constexpr (sizeof(T) == 8)
        asm volatile("st.shared.v2.b32 [%0], {%1, %2};" ::"r"(address), "r"(reinterpret_cast<uint2&>(x).x),
                     "r"(reinterpret_cast<uint2&>(x).y)
                     : "memory");
    else
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(reinterpret_cast<uint4&>(x).x),
                     "r"(reinterpret_cast<uint4&>(x).y), "r"(reinterpret_cast<uint4&>(x).z), "r"(reinterpret_cast<uint4&>(x).w)
                     : "memory");
}

// A structure of whole 16 bytes.
template <class T> __device__ __forceinline__ void shared_store_whole(u32 address, const T& x) {
#pragma unroll
    for (int i = 0; i < (int)sizeof(T); i += 16) shared_store(address + i, reinterpret_cast<const uint4*>(&x)[i / 16]);
}
template <class T> __device__ __forceinline__ T shared_load_whole(u32 address) {
    uint4 parts[sizeof(T) / 16];
#pragma unroll
    for (int i = 0; i < (int)sizeof(T); i += 16) parts[i / 16] = shared_load<uint4>(address + i);
    return reinterpret_cast<const T&>(parts);
}

// To global memory, in one instruction: of an ordinary store the compiler may make several.
__device__ __forceinline__ void store_16_bytes(void* there, const u32 (&words)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(there), "r"(words[0]), "r"(words[1]), "r"(words[2]),
                 "r"(words[3])
                 : "memory");
}

// Copies BYTES (4, 8 or 16) to shared memory in the background. Where `valid` is false it writes zeros and reads nothing,
// whatever `global` is. Both addresses are aligned to BYTES.
template <int BYTES> __device__ __forceinline__ void copy_async(u32 shared, const void* global, bool valid) {
    int bytes = valid ? BYTES : 0;
    if constexpr (BYTES == 16)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(bytes) : "memory");
    else
        asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(BYTES), "r"(bytes)
                     : "memory");
}
__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most PENDING of this thread's latest groups are under way.
template <int PENDING> __device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// Four 8x8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8.
// Thread l gets of each matrix row l / 4, columns 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
// The same, each matrix transposed: thread l gets column l / 4, rows 2 (l % 4) and the next.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}
// Transposes an 8x8 matrix of 16-bit numbers held as ldmatrix leaves it.
__device__ __forceinline__ u32 transpose_8x8(u32 x) {
    u32 y;
    asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
    return y;
}

// The way back to shared memory, as ldmatrix_x4 and ldmatrix_x4_trans; Hopper only.
__device__ __forceinline__ void stmatrix_x4(u32 row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]), "r"(r[2]),
                 "r"(r[3])
                 : "memory");
}
__device__ __forceinline__ void stmatrix_x4_trans(u32 row, const u32 (&r)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(r[0]), "r"(r[1]),
                 "r"(r[2]), "r"(r[3])
                 : "memory");
}

// d += a b with a [16 x 16], b [16 x 8], d [16 x 8], in float32. With l the lane, r = l / 4 and c = 2 (l % 4):
//   a: (r, c..), (r + 8, c..), (r, c + 8..), (r + 8, c + 8..)     b: (c.., r), (c + 8.., r)
//   d: (r, c), (r, c + 1), (r + 8, c), (r + 8, c + 1)
template <class T> __device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> __device__ __forceinline__ void mma_m16n8k16<bf16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> __device__ __forceinline__ void mma_m16n8k16<fp16>(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The same with a [16 x 8], b [8 x 8]: the first halves of their registers.
template <class T> __device__ __forceinline__ void mma_m16n8k8(float (&d)[4], const u32 (&a)[2], u32 b);
template <> __device__ __forceinline__ void mma_m16n8k8<bf16>(float (&d)[4], const u32 (&a)[2], u32 b) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(b));
}

// The registers that each thread of this warp's group of four may use from here on, of SHARE before; 0 leaves it at that. Hopper
// only.
template <int COUNT, int SHARE> __device__ __forceinline__ void set_registers() {
    if constexpr (COUNT > SHARE)
        asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(COUNT));
    else if constexpr (COUNT > 0)
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(COUNT));
}

// The first thing in a kernel that may start before the one ahead of it in the stream has ended: waits for what that one writes.
// And in that one, to let the next kernel start once all blocks have.
__device__ __forceinline__ void follow_stream() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Named barriers 1 to 15 for some of a block's warps; barrier 0 is __syncthreads. `threads` counts those that wait and those that
// arrive.
__device__ __forceinline__ void barrier_wait(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void barrier_arrive(int id, int threads) {
    asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Waits, and tells whether `flag` is set in any of the threads.
__device__ __forceinline__ bool barrier_any(int id, int threads, bool flag) {
    u32 any;
    asm volatile("{ .reg .pred p, q; setp.ne.u32 p, %3, 0; bar.red.or.pred q, %1, %2, p; selp.u32 %0, 1, 0, q; }"
                 : "=r"(any)
                 : "r"(id), "r"(threads), "r"((u32)flag)
                 : "memory");
    return any != 0;
}

} // namespace fla
