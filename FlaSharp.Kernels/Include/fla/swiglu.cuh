// What both passes of y = silu(gate) up share. Constant: ELEMENT of all tensors (float, bf16 or fp16).
#pragma once
#include "fla/activation.cuh"
#include "fla/elementwise.cuh"
#include "fla/vector.cuh"

namespace fla {

using Element = ELEMENT;
constexpr int VALUES = 16 / sizeof(Element); // for one thread, where all is aligned

} // namespace fla
