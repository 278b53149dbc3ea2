// Joins the segments that segment_state.cu treated on their own: the state before each (or, against time, the gradient of the
// state after each), in place of where the segment alone leads to.
#include "fla/decay_rate.cuh"
#include "fla/ptx.cuh"

using namespace fla;

struct SelectiveScanSegmentJoin {
    float* states;            // [S, segments, E, N]
    const float* delta_sums;  // [S, segments, E]
    const float* a;           // [E, N]: A, or log(-A)
    const float* initial;     // [S, E, N], or null for zeros
    i64 sequences;
    int channels, states_count;  // E, N
    int segments, parts, backward, is_log;  // parts: that many segments at one end are not needed, but for what joins them
};

extern "C" __global__ void __launch_bounds__(256)
    selective_scan_segment_join(const __grid_constant__ SelectiveScanSegmentJoin p) {
    follow_stream();
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x, size = (i64)p.channels * p.states_count;
    if (i >= p.sequences * size) return;
    i64 sequence = i / size, place = i % size;
    float rate = LOG2E * decay_rate(p.a[place], p.is_log), carry = p.initial ? p.initial[i] : 0.f;
    int count = p.segments - p.parts + 1;
    for (int n = 0; n < count; n++) {
        i64 segment = sequence * p.segments + (p.backward ? p.segments - 1 - n : n);
        float& state = p.states[segment * size + place];
        float next = carry;
        if (n + 1 < count) next = carry * pow2(rate * p.delta_sums[segment * p.channels + place / p.states_count]) + state;
        state = carry;
        carry = next;
    }
}
