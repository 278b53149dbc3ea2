// The gradients of swiglu_forward.cu. Constants: ELEMENT of all tensors (float, bf16 or fp16); THREADS of a block.
#include "fla/swiglu.cuh"

using namespace fla;

struct SwiGluBackward {
    const void *gate, *up, *dy;
    void *dgate, *dup;
    i64 count;
    int aligned; // to 16 bytes: all tensors
};

extern "C" __global__ void __launch_bounds__(THREADS) swiglu_backward(const __grid_constant__ SwiGluBackward p) {
    for_each_vector<THREADS, VALUES>(p.count, p.aligned, [&](auto width, i64 first) {
        constexpr int N = decltype(width)::value;
        Vector<Element, N> gate, up, dy;
        gate.load(static_cast<const Element*>(p.gate) + first);
        up.load(static_cast<const Element*>(p.up) + first);
        dy.load(static_cast<const Element*>(p.dy) + first);
        float of_gate[N], of_up[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            Silu silu(gate[i]);
            of_gate[i] = dy[i] * up[i] * silu.slope;
            of_up[i] = dy[i] * silu.value;
        }
        gate.set(of_gate), gate.store(static_cast<Element*>(p.dgate) + first);
        up.set(of_up), up.store(static_cast<Element*>(p.dup) + first);
    });
}
