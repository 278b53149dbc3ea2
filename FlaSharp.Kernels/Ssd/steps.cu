// The step sizes of the state space duality, and sums of their log-decays over chunks: small numbers that all other kernels read
// many times, by head and chunk. One warp for a head and a chunk.
#include "fla/ssd.cuh"

using namespace fla;

struct SsdSteps {
    Sequences sequences;
    TensorView dt; // [B, T, H, 1]
    SsdStepRule rule;
    float* steps;      // [slots, H, STEP_CHUNK]; 0 behind the end of a sequence
    float* sums;       // of log2 decays from the chunk's beginning on, each token's own included, [slots, H, STEP_CHUNK]
    int heads, chunks; // of the longest sequence
};

typedef TYPE T;

extern "C" __global__ void __launch_bounds__(THREADS) ssd_steps(const __grid_constant__ SsdSteps p) {
    int lane = threadIdx.x % 32, head = blockIdx.y * (THREADS / 32) + threadIdx.x / 32, chunk = blockIdx.x % p.chunks;
    Sequence sequence(p.sequences, blockIdx.x / p.chunks);
    int first = chunk * STEP_CHUNK + lane * 2;
    if (head >= p.heads || chunk * STEP_CHUNK >= sequence.length) return;

    auto dt = sequence.rows<T>(p.dt, head);
    float2 step = make_float2(0.f, 0.f);
    if (first < sequence.length) step.x = SsdStep(to_float(*dt[first]), p.rule, head).value;
    if (first + 1 < sequence.length) step.y = SsdStep(to_float(*dt[first + 1]), p.rule, head).value;
    float rate = p.rule.rate(head) * LOG2E;
    float decay = max_nan(step.x * rate, MIN_LOG2_STEP), next = max_nan(step.y * rate, MIN_LOG2_STEP);

    // In double precision: what follows a strong decay must not be rounded to the digits that this leaves.
    double sum = sum_of_lanes_before((double)decay + next, lane);
    i64 before =
        p.sequences.offsets ? p.sequences.offsets[sequence.index] / STEP_CHUNK + sequence.index : (i64)sequence.index * p.chunks;
    i64 place = ((before + chunk) * p.heads + head) * STEP_CHUNK + lane * 2;
    *reinterpret_cast<float2*>(p.steps + place) = step;
    *reinterpret_cast<float2*>(p.sums + place) = make_float2((float)(sum - next), (float)sum);
}
