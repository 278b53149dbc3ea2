// What the kernels of the state space duality share: the step sizes, and where their results lie.
#pragma once
#include "fla/decay_rate.cuh"
#include "fla/gla.cuh"
#include "fla/ptx.cuh"

namespace fla {

constexpr int STEP_CHUNK = 64; // tokens that the decays are summed up over
constexpr int SPAN = 2 * STEP_CHUNK;     // tokens between the states that are saved for backward

// A log2 decay of less is 0, so that all sums stay small enough to tell the weak ones apart.
constexpr float MIN_LOG2_STEP = -150.f;

// Which of the states that are saved every SPAN tokens is that of a chunk of STEP_CHUNK; packed sequences leave gaps.
__device__ __forceinline__ i64 span_slot(const Sequences& all, const Sequence& sequence, int chunk) {
    i64 before = all.offsets ? all.offsets[sequence.index] / SPAN + sequence.index
                             : (i64)sequence.index * ((all.length + SPAN - 1) / SPAN);
    return before + chunk / (SPAN / STEP_CHUNK);
}

// How step sizes come from their inputs.
struct SsdStepRule {
    const float* bias;  // [H], or null
    const float* rates; // [H]: the log-decay is the step size times this; or log(-rate)
    float low, high;    // bounds of the step sizes, -inf and inf for none
    int softplus, is_log; // is_log: of the rates

    __device__ __forceinline__ float rate(int head) const { return decay_rate(rates[head], is_log); }
};

// A step size, and its derivative by the input.
struct SsdStep {
    float value, slope;

    __device__ __forceinline__ SsdStep(float x, const SsdStepRule& rule, int head) : value(x), slope(1.f) {
        if (rule.bias) value += rule.bias[head];
        if (rule.softplus && value <= 20.f) {
            float e = expf(value);
            slope = e / (1.f + e);
            value = log1pf(e);
        }
        if (value < rule.low || value > rule.high) {
            value = value < rule.low ? rule.low : rule.high;
            slope = 0.f;
        }
    }
};

// The sum over the lanes up to this one, this one included.
template <class T>
__device__ __forceinline__ T sum_of_lanes_before(T x, int lane) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
        T other = __shfl_up_sync(~0u, x, step);
        if (lane >= step) x += other;
    }
    return x;
}

} // namespace fla
