// y = silu(gate) up. Constants: ELEMENT of all tensors (float, bf16 or fp16); THREADS of a block.
#include "fla/swiglu.cuh"

using namespace fla;

struct SwiGluForward {
    const void *gate, *up;
    void* y;
    i64 count;
    int aligned; // to 16 bytes: all tensors
};

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_forward(const __grid_constant__ SwiGluForward p) {
    for_each_vector<THREADS, VALUES>(p.count, p.aligned, [&](auto width, i64 first) {
        constexpr int N = decltype(width)::value;
        Vector<Element, N> gate, up;
        gate.load(static_cast<const Element*>(p.gate) + first);
        up.load(static_cast<const Element*>(p.up) + first);
        float values[N];
#pragma unroll
        for (int i = 0; i < N; i++) values[i] = Silu(gate[i]).value * up[i];
        up.set(values);
        up.store(static_cast<Element*>(p.y) + first);
    });
}
