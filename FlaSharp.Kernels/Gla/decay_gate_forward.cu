// The log decays of gated linear attention in float32: g = max(logsigmoid(x) / normalizer, minimum).
#include "fla/decay_gate.cuh"

using namespace fla;

struct DecayGateForward {
    const void* x;
    float* g;
    i64 count;
    DecayGate gate;
    int aligned; // to 16 bytes: x and g
};

extern "C" __global__ void __launch_bounds__(THREADS) decay_gate_forward(const __grid_constant__ DecayGateForward p) {
    for_each_vector<THREADS, VALUES>(p.count, p.aligned, [&](auto width, i64 first) {
        constexpr int N = decltype(width)::value;
        Vector<Element, N> x;
        x.load(static_cast<const Element*>(p.x) + first);
        float values[N];
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = max_nan(LogDecay(x[i], p.gate).value, p.gate.minimum);
        Vector<float, N> g;
        g.set(values);
        g.store(p.g + first);
    });
}
