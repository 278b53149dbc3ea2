// The gradient of decay_gate_forward.cu: dx = dg sigmoid(-x) / normalizer, 0 below the minimum.
#include "fla/decay_gate.cuh"

using namespace fla;

struct DecayGateBackward {
    const void* x;
    const float* dg;
    void* dx;
    i64 count;
    DecayGate gate;
    int aligned; // to 16 bytes: x, dg and dx
};

extern "C" __global__ void __launch_bounds__(THREADS) decay_gate_backward(const __grid_constant__ DecayGateBackward p) {
    for_each_vector<THREADS, VALUES>(p.count, p.aligned, [&](auto width, i64 first) {
        constexpr int N = decltype(width)::value;
        Vector<Element, N> x;
        Vector<float, N> dg;
        x.load(static_cast<const Element*>(p.x) + first);
        dg.load(p.dg + first);
        float values[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            LogDecay decay(x[i], p.gate);
            values[i] = decay.value < p.gate.minimum ? 0 : dg[i] * decay.slope / p.gate.normalizer;
        }
        x.set(values);
        x.store(static_cast<Element*>(p.dx) + first);
    });
}
