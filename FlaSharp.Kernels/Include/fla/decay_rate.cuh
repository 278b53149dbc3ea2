// The decay rates of state spaces.
#pragma once
#include "fla/types.cuh"

namespace fla {

// A rate that is given as itself or, as a model's parameter A_log is, as log(-rate).
__device__ __forceinline__ float decay_rate(float a, int is_log) { return is_log ? -expf(a) : a; }

} // namespace fla
