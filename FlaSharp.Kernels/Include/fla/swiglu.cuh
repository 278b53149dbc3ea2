// What both passes of y = silu(gate) up share. Constant: ELEMENT of all tensors (float, bf16 or fp16).
#pragma once
#include "fla/elementwise.cuh"
#include "fla/ptx.cuh"
#include "fla/vector.cuh"

namespace fla {

using Element = ELEMENT;
constexpr int VALUES = 16 / sizeof(Element); // for one thread, where all is aligned

// x sigmoid(x), and its derivative.
struct Silu {
    float value, slope;

    __device__ __forceinline__ explicit Silu(float x) {
        float sigmoid = reciprocal(1.f + pow2(-LOG2E * x));
        value = x * sigmoid;
        slope = fmaf(value, 1.f - sigmoid, sigmoid);
    }
};

} // namespace fla
