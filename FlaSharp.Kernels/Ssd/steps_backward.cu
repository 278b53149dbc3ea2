// The gradient of the step sizes' inputs, and what the gradients of their parameters and of D are sums of. One warp for a head
// and a span.
//
// The log-decay of token t reaches all that goes from tokens before t to tokens from t on:
//   products of the states and sums over tokens j < t of what leaves the span, over tokens i >= t of what comes in or goes from i
//   to i, less what goes out to others: ssd_chunk_backward has left these.
#include "fla/ssd.cuh"

using namespace fla;

struct SsdStepsBackward {
    Sequences sequences;
    TensorView dt, grad_dt; // [B, T, H, 1]
    SsdStepRule rule;
    const float4* tokens;     // [slices, slots, H, STEP_CHUNK]
    const float* products;    // [slices, slots, H]
    float* totals;            // gradients of the rates as they are given, the biases and D over each span, [spans, H, 3]
    i64 slots;                // times H
    int slices, heads, spans; // spans of the longest sequence
};

typedef TYPE T;
constexpr int OWN = SPAN / 32; // tokens of a lane

extern "C" __global__ void __launch_bounds__(THREADS) ssd_steps_backward(const __grid_constant__ SsdStepsBackward p) {
    int lane = threadIdx.x % 32, head = blockIdx.y * (THREADS / 32) + threadIdx.x / 32, span = blockIdx.x % p.spans;
    Sequence sequence(p.sequences, blockIdx.x / p.spans);
    if (head >= p.heads || span * SPAN >= sequence.length) return;

    i64 before = p.sequences.offsets ? p.sequences.offsets[sequence.index] / STEP_CHUNK + sequence.index
                                     : (i64)sequence.index * ((p.sequences.length + STEP_CHUNK - 1) / STEP_CHUNK);
    int chunk = span * (SPAN / STEP_CHUNK) + lane / (STEP_CHUNK / OWN), first = span * SPAN + lane * OWN;
    i64 slot = (before + chunk) * p.heads + head;
    float4 sum[OWN] = {};
    float product = 0.f;
    if (chunk * STEP_CHUNK < sequence.length)
        for (int s = 0; s < p.slices; s++) {
            i64 place = s * p.slots + slot;
            if (lane % (STEP_CHUNK / OWN) == 0) product += p.products[place];
#pragma unroll
            for (int i = 0; i < OWN; i++) {
                float4 token = p.tokens[place * STEP_CHUNK + lane * OWN % STEP_CHUNK + i];
                sum[i].x += token.x, sum[i].y += token.y, sum[i].z += token.z, sum[i].w += token.w;
            }
        }

    float left = 0.f, right = 0.f;
#pragma unroll
    for (int i = 0; i < OWN; i++) left += sum[i].z, right += sum[i].x;
    float left_before = __shfl_up_sync(~0u, sum_of_lanes_before(left, lane), 1); // of earlier lanes
    if (lane == 0) left_before = 0.f;
    float right_after = sum_of_lanes_before(__shfl_sync(~0u, right, 31 - lane), lane);
    right_after = __shfl_sync(~0u, right_after, 31 - lane); // of this lane and later ones
    float all = product + __shfl_xor_sync(~0u, product, 16);
    all = __shfl_sync(~0u, all, 0);

    auto dt = sequence.rows<T>(p.dt, head), grad_dt = sequence.rows<T>(p.grad_dt, head);
    float rate = p.rule.rate(head), of_rate = 0.f, of_bias = 0.f, of_direct = 0.f;
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        if (first + i >= sequence.length) continue;
        float of_decay = all + left_before + right_after;
        SsdStep step(to_float(*dt[first + i]), p.rule, head);
        float gradient = (sum[i].y + rate * of_decay) * step.slope;
        *grad_dt[first + i] = from_float<T>(gradient);
        of_rate += step.value * of_decay;
        of_bias += gradient;
        of_direct += sum[i].w;
        left_before += sum[i].z;
        right_after -= sum[i].x;
    }
#pragma unroll
    for (int mask = 1; mask < 32; mask *= 2) {
        of_rate += __shfl_xor_sync(~0u, of_rate, mask);
        of_bias += __shfl_xor_sync(~0u, of_bias, mask);
        of_direct += __shfl_xor_sync(~0u, of_direct, mask);
    }
    if (lane > 0) return;
    float* totals = p.totals + ((span_slot(p.sequences, sequence, chunk)) * p.heads + head) * 3;
    totals[0] = p.rule.is_log ? of_rate * rate : of_rate, totals[1] = of_bias, totals[2] = of_direct;
}
