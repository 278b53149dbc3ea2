// Storage types of tensors and their conversions. No toolkit header is needed, so none has to be installed.
#pragma once

namespace fla {

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

template <class A, class B> struct Same { static constexpr bool value = false; };
template <class A> struct Same<A, A> { static constexpr bool value = true; };
template <class A, class B> constexpr bool same() { return Same<A, B>::value; }

struct bf16 { u16 bits; };
struct fp16 { u16 bits; };

// Two numbers; those of 16 bits in a register, the first one in the lower half, as the matrix instructions want them.
template <class T> struct Pair;

template <> struct Pair<bf16> {
    typedef u32 Type;
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static __device__ __forceinline__ float low(u32 packed) { return __uint_as_float(packed << 16); }
    static __device__ __forceinline__ float high(u32 packed) { return __uint_as_float(packed & 0xffff0000u); }
};

template <> struct Pair<fp16> {
    typedef u32 Type;
    static __device__ __forceinline__ u32 pack(float low, float high) {
        u32 packed;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
        return packed;
    }
    static __device__ __forceinline__ float low(u32 packed) {
        float value;
        asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l; }" : "=f"(value) : "r"(packed));
        return value;
    }
    static __device__ __forceinline__ float high(u32 packed) {
        float value;
        asm("{ .reg .f16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h; }" : "=f"(value) : "r"(packed));
        return value;
    }
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
