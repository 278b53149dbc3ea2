// On the CPU: storage types of tensors and their conversions, as in FlaSharp.Kernels/Include/fla/types.cuh.
#pragma once

namespace fla {

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

template <class A, class B> constexpr bool same() { return std::is_same_v<A, B>; }

struct bf16 { u16 bits; };
struct fp16 { u16 bits; };

template <class T> struct Pair;

template <> struct Pair<bf16> {
    typedef u32 Type;
    static u32 round(float x) {
        u32 bits = __float_as_uint(x);
        if (isnan(x)) return 0x7fff;
        return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; // to nearest, ties to even
    }
    static u32 pack(float low, float high) { return round(high) << 16 | round(low); }
    static float low(u32 packed) { return __uint_as_float(packed << 16); }
    static float high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
};

template <> struct Pair<fp16> {
    typedef u32 Type;
    static u32 round(float x) { return isnan(x) ? 0x7fff : (u32)emulator::to_half(x); }
    static u32 pack(float low, float high) { return round(high) << 16 | round(low); }
    static float low(u32 packed) { return emulator::from_half((u16)packed); }
    static float high(u32 packed) { return emulator::from_half((u16)(packed >> 16)); }
};

template <> struct Pair<float> {
    typedef float2 Type;
    static __device__ __forceinline__ float2 pack(float low, float high) { return make_float2(low, high); }
    static __device__ __forceinline__ float low(float2 pair) { return pair.x; }
    static __device__ __forceinline__ float high(float2 pair) { return pair.y; }
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return Pair<bf16>::low(x.bits); }
__device__ __forceinline__ float to_float(fp16 x) { return Pair<fp16>::low(x.bits); }

template <class T> __device__ __forceinline__ T from_float(float x) { return T{(u16)Pair<T>::pack(x, 0.f)}; }
template <> __device__ __forceinline__ float from_float<float>(float x) { return x; }

} // namespace fla
