// Activation functions, by fast exponentials and reciprocals: to a few units in the last place of float32.
#pragma once
#include "fla/ptx.cuh"

namespace fla {

__device__ __forceinline__ float sigmoid(float x) { return reciprocal(1.f + pow2(-LOG2E * x)); }

// x sigmoid(x), and its derivative.
struct Silu {
    float value, slope;

    __device__ __forceinline__ explicit Silu(float x) {
        float s = sigmoid(x);
        value = x * s;
        slope = fmaf(value, 1.f - s, s);
    }
};

} // namespace fla
