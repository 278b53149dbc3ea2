// Joins segments that gla_chunk_state treated on their own: the state at each segment's beginning (or, against time, the gradient
// of the state at its end), in place of where the segment alone leads to.
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"

using namespace fla;

struct GlaSegmentScan {
    float* states;        // [sequences, H, segments, K, V]
    const float* decay;   // [sequences, H, segments, K], log2
    const float* initial; // [sequences, H, K, V], or null for 0
    i64 size;             // sequences * H * K * V
    int segments, key_size, value_size, backward;
};

extern "C" __global__ void __launch_bounds__(256) gla_segment_scan(const __grid_constant__ GlaSegmentScan p) {
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x, state_size = (i64)p.key_size * p.value_size;
    if (i >= p.size) return;
    i64 state = i / state_size * p.segments, place = i % state_size;
    float carry = p.initial ? p.initial[i] : 0.f;
    for (int n = 0; n < p.segments; n++) {
        i64 segment = state + (p.backward ? p.segments - 1 - n : n);
        float& local = p.states[segment * state_size + place];
        float next = carry * pow2(p.decay[segment * p.key_size + place / p.value_size]) + local;
        local = carry;
        carry = next;
    }
}
