// The words and built-ins of CUDA C++ that kernels without toolkit headers use. Included before a kernel's first line.
#pragma once
#include "runtime.h"
#include <immintrin.h>
#include <math.h>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(...)
#define __cluster_dims__(...)
#define __maxnreg__(registers)
// Nothing else here is thread-local, so the emulator finds these variables, poisons them and checks addresses.
#define __shared__ static thread_local

constexpr int warpSize = 32;
using dim3 = uint3;

// ---- Vectors

#define FLA_VECTORS(type, name, pair, four)                                                                           \
    struct name##1 { type x; };                                                                                       \
    struct alignas(pair) name##2 { type x, y; };                                                                      \
    struct alignas(four) name##4 { type x, y, z, w; };                                                                \
    constexpr name##1 make_##name##1(type x) { return {x}; }                                                          \
    constexpr name##2 make_##name##2(type x, type y) { return {x, y}; }                                               \
    constexpr name##4 make_##name##4(type x, type y, type z, type w) { return {x, y, z, w}; }
FLA_VECTORS(signed char, char, 2, 4)
FLA_VECTORS(unsigned char, uchar, 2, 4)
FLA_VECTORS(short, short, 4, 8)
FLA_VECTORS(unsigned short, ushort, 4, 8)
FLA_VECTORS(int, int, 8, 16)
FLA_VECTORS(unsigned int, uint, 8, 16)
FLA_VECTORS(float, float, 8, 16)
FLA_VECTORS(long long, longlong, 16, 16)
FLA_VECTORS(unsigned long long, ulonglong, 16, 16)
FLA_VECTORS(double, double, 16, 16)
#undef FLA_VECTORS
struct float3 { float x, y, z; };
struct int3 { int x, y, z; };
constexpr float3 make_float3(float x, float y, float z) { return {x, y, z}; }
constexpr int3 make_int3(int x, int y, int z) { return {x, y, z}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// ---- Arithmetic

template <class A, class B> constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return (T)fmin((T)a, (T)b);
    else return (T)b < (T)a ? (T)b : (T)a;
}
template <class A, class B> constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    if constexpr (std::is_floating_point_v<T>) return (T)fmax((T)a, (T)b);
    else return (T)a < (T)b ? (T)b : (T)a;
}

template <class To, class From> inline To emulator_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}
inline unsigned __float_as_uint(float x) { return emulator_bits<unsigned>(x); }
inline int __float_as_int(float x) { return emulator_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return emulator_bits<float>(x); }
inline float __int_as_float(int x) { return emulator_bits<float>(x); }
inline long long __double_as_longlong(double x) { return emulator_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return emulator_bits<double>(x); }

namespace emulator {
inline unsigned short to_half(float x) { return (unsigned short)_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT); }
inline float from_half(unsigned short x) { return _cvtsh_ss(x); }
} // namespace emulator

inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.f / sqrtf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float fdividef(float a, float b) { return a / b; }
inline void sincospif(float x, float* sin, float* cos) { *sin = (float)::sin(M_PI * x), *cos = (float)::cos(M_PI * x); }
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }
inline float __saturatef(float x) { return x > 0.f ? fminf(x, 1.f) : 0.f; }
// Macros, since the C library declares some of these names for itself.
#define __expf(x) expf(x)
#define __exp10f(x) exp10f(x)
#define __logf(x) logf(x)
#define __log2f(x) log2f(x)
#define __log10f(x) log10f(x)
#define __powf(x, y) powf(x, y)
#define __sinf(x) sinf(x)
#define __cosf(x) cosf(x)
#define __tanf(x) tanf(x)

inline int __float2int_rn(float x) { return (int)nearbyintf(x); }
inline int __float2int_rz(float x) { return (int)x; }
inline int __float2int_rd(float x) { return (int)floorf(x); }
inline int __float2int_ru(float x) { return (int)ceilf(x); }
inline float __int2float_rn(int x) { return (float)x; }
inline float __uint2float_rn(unsigned x) { return (float)x; }

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll((unsigned long long)x) : 64; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline unsigned __brev(unsigned x) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (x >> i & 1u) << (31 - i);
    return reversed;
}
inline unsigned __byte_perm(unsigned low, unsigned high, unsigned selector) {
    unsigned long long bytes = (unsigned long long)high << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned nibble = selector >> 4 * i & 15u;
        unsigned byte = (unsigned)(bytes >> 8 * (nibble & 7u)) & 255u;
        if (nibble & 8u) byte = byte & 128u ? 255u : 0u; // the byte's sign instead of the byte
        result |= byte << 8 * i;
    }
    return result;
}
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((unsigned long long)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((long long)a * b >> 32); }

// ---- Memory

template <class T> inline T __ldg(const T* p) { return *p; }
template <class T> inline T __ldcg(const T* p) { return *p; }
template <class T> inline T __ldca(const T* p) { return *p; }
template <class T> inline T __ldcs(const T* p) { return *p; }
template <class T> inline void __stcg(T* p, T value) { *p = value; }
template <class T> inline void __stcs(T* p, T value) { *p = value; }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline long long clock64() { return (long long)++emulator::machine.clock; }

// Fibers change only at a warp's operations, so an ordinary read and write is atomic.
#define FLA_ATOMIC(name, expression)                                                                                  \
    template <class T> inline T name(T* p, std::common_type_t<T> value) {                                             \
        T old = *p;                                                                                                   \
        *p = expression;                                                                                              \
        return old;                                                                                                   \
    }
FLA_ATOMIC(atomicAdd, old + value)
FLA_ATOMIC(atomicMin, value < old ? value : old)
FLA_ATOMIC(atomicMax, old < value ? value : old)
FLA_ATOMIC(atomicExch, value)
FLA_ATOMIC(atomicOr, old | value)
FLA_ATOMIC(atomicAnd, old & value)
#undef FLA_ATOMIC
template <class T> inline T atomicCAS(T* p, std::common_type_t<T> expected, std::common_type_t<T> value) {
    T old = *p;
    if (old == expected) *p = value;
    return old;
}

[[noreturn]] inline __attribute__((always_inline)) void __trap() { __builtin_trap(); }

// ---- Synchronization

#define __syncthreads() emulator::barrier("__syncthreads", 0, emulator::block_threads(), emulator::Arrival::Wait)
#define __syncthreads_count(flag)                                                                                     \
    emulator::barrier("__syncthreads_count", 0, emulator::block_threads(), emulator::Arrival::Reduce, (flag) != 0)
#define __syncthreads_or(flag) (__syncthreads_count(flag) != 0)
#define __syncthreads_and(flag) (__syncthreads_count(!(flag)) == 0)

__forceinline__ void __syncwarp(unsigned mask = ~0u) {
    emulator::collective<int, int>("__syncwarp", 0, mask, 0, [](const void* const*, void* const*, unsigned) {});
}

// ---- Exchange in a warp

namespace emulator {

struct Ballot { u32 mask, set; };

__forceinline__ Ballot ballot(const char* operation, u32 mask, bool set) {
    return collective<bool, Ballot>(operation, 0, mask, set, [](const void* const* in, void* const* out, u32 lanes) {
        u32 votes = 0;
        for (u32 rest = lanes; rest; rest &= rest - 1)
            if (input_of<bool>(in, __builtin_ctz(rest))) votes |= rest & -rest;
        for (u32 rest = lanes; rest; rest &= rest - 1) output_of<Ballot>(out, __builtin_ctz(rest)) = {lanes, votes};
    });
}

template <class T> struct Shuffled { T value; int source; };

template <class T> __forceinline__ T shuffle(const char* operation, u32 mask, T value, int source, int width) {
    Shuffled<T> input{value, source};
    return collective<Shuffled<T>, T>(operation, (u64)width, mask, input, [](const void* const* in, void* const* out, u32 lanes) {
        for (u32 rest = lanes; rest; rest &= rest - 1) {
            int lane = __builtin_ctz(rest);
            int source = input_of<Shuffled<T>>(in, lane).source;
            if (!(lanes & bit(source)))
                fail("shuffle: lane %d reads lane %d, which does not take part (0x%08x)", lane, source, lanes);
            output_of<T>(out, lane) = input_of<Shuffled<T>>(in, source).value;
        }
    });
}

inline int lane() { return machine.current->lane; }
inline int segment(int width) { return lane() & ~(width - 1); }

template <class T, class F> __forceinline__ T reduce(const char* operation, u32 mask, T value, F) {
    return collective<T, T>(operation, 0, mask, value, [](const void* const* in, void* const* out, u32 lanes) {
        T total = input_of<T>(in, __builtin_ctz(lanes));
        for (u32 rest = lanes & (lanes - 1); rest; rest &= rest - 1) total = F::of(total, input_of<T>(in, __builtin_ctz(rest)));
        for (u32 rest = lanes; rest; rest &= rest - 1) output_of<T>(out, __builtin_ctz(rest)) = total;
    });
}
struct Sum { template <class T> static T of(T a, T b) { return a + b; } };
struct Least { template <class T> static T of(T a, T b) { return a < b ? a : b; } };
struct Greatest { template <class T> static T of(T a, T b) { return a < b ? b : a; } };

} // namespace emulator

__forceinline__ unsigned __ballot_sync(unsigned mask, bool set) { return emulator::ballot("__ballot_sync", mask, set).set; }
__forceinline__ bool __any_sync(unsigned mask, bool set) { return emulator::ballot("__any_sync", mask, set).set != 0; }
__forceinline__ bool __all_sync(unsigned mask, bool set) {
    emulator::Ballot votes = emulator::ballot("__all_sync", mask, set);
    return votes.set == votes.mask;
}
template <class T> __forceinline__ T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    return emulator::shuffle("__shfl_sync", mask, value, emulator::segment(width) + (source & (width - 1)), width);
}
template <class T> __forceinline__ T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int source = emulator::lane() - (int)delta;
    bool inside = source >= emulator::segment(width);
    return emulator::shuffle("__shfl_up_sync", mask, value, inside ? source : emulator::lane(), width);
}
template <class T> __forceinline__ T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    int source = emulator::lane() + (int)delta;
    bool inside = source < emulator::segment(width) + width;
    return emulator::shuffle("__shfl_down_sync", mask, value, inside ? source : emulator::lane(), width);
}
template <class T> __forceinline__ T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int source = emulator::lane() ^ bits;
    bool inside = source < emulator::segment(width) + width;
    return emulator::shuffle("__shfl_xor_sync", mask, value, inside ? source : emulator::lane(), width);
}
template <class T> __forceinline__ T __reduce_add_sync(unsigned mask, T value) {
    return emulator::reduce("__reduce_add_sync", mask, value, emulator::Sum{});
}
template <class T> __forceinline__ T __reduce_min_sync(unsigned mask, T value) {
    return emulator::reduce("__reduce_min_sync", mask, value, emulator::Least{});
}
template <class T> __forceinline__ T __reduce_max_sync(unsigned mask, T value) {
    return emulator::reduce("__reduce_max_sync", mask, value, emulator::Greatest{});
}
