// Neighbours in global memory that one thread reads and writes together.
#pragma once
#include "fla/types.cuh"

namespace fla {

// N numbers of type T as they lie in memory: whole 16 bytes, or whole 8, aligned to them. Kept as words, which take half the
// registers of 16-bit numbers on their own.
template <class T, int N> struct Vector {
    static_assert(N * sizeof(T) % 8 == 0, "whole accesses");
    u32 words[N * sizeof(T) / 4];

    __device__ __forceinline__ void load(const T* from) {
        if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
            for (int i = 0; i < N * sizeof(T) / 16; i++) {
                uint4 part = reinterpret_cast<const uint4*>(from)[i];
                words[4 * i] = part.x, words[4 * i + 1] = part.y, words[4 * i + 2] = part.z, words[4 * i + 3] = part.w;
            }
        } else {
#pragma unroll
            for (int i = 0; i < N * sizeof(T) / 8; i++) {
                uint2 part = reinterpret_cast<const uint2*>(from)[i];
                words[2 * i] = part.x, words[2 * i + 1] = part.y;
            }
        }
    }
    __device__ __forceinline__ void store(T* to) const {
        if constexpr (N * sizeof(T) % 16 == 0) {
#pragma unroll
            for (int i = 0; i < N * sizeof(T) / 16; i++)
                reinterpret_cast<uint4*>(to)[i] = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
        } else {
#pragma unroll
            for (int i = 0; i < N * sizeof(T) / 8; i++)
                reinterpret_cast<uint2*>(to)[i] = make_uint2(words[2 * i], words[2 * i + 1]);
        }
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (u32& word : words) word = 0;
    }
    __device__ __forceinline__ float operator[](int i) const {
        if constexpr (sizeof(T) == 4)
            return __uint_as_float(words[i]);
        else
            return i % 2 ? Pair<T>::high(words[i / 2]) : Pair<T>::low(words[i / 2]);
    }
    __device__ __forceinline__ void set(const float (&values)[N]) {
        if constexpr (sizeof(T) == 4) {
#pragma unroll
            for (int i = 0; i < N; i++) words[i] = __float_as_uint(values[i]);
        } else {
#pragma unroll
            for (int i = 0; i < N / 2; i++) words[i] = Pair<T>::pack(values[2 * i], values[2 * i + 1]);
        }
    }
};

// One number, wherever it lies.
template <class T> struct Vector<T, 1> {
    T value;

    __device__ __forceinline__ void load(const T* from) { value = *from; }
    __device__ __forceinline__ void store(T* to) const { *to = value; }
    __device__ __forceinline__ void clear() { value = T{}; }
    __device__ __forceinline__ float operator[](int) const { return to_float(value); }
    __device__ __forceinline__ void set(const float (&values)[1]) { value = from_float<T>(values[0]); }
};

} // namespace fla
