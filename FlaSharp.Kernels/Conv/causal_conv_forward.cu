// The causal convolution of fla/causal_conv.cuh, and the state after it: the last PAST inputs.
#include "fla/causal_conv.cuh"

using namespace fla;

struct CausalConvForward {
    ConvShape shape;
    TensorView x, y; // [B, T, channels]
    ConvParameters parameters;
    const float* initial_state; // [S, channels, PAST], or null
    float* final_state;         // or null; the initial one where each sequence is a single run
};

// COUNT tokens from t on.
template <int COUNT> __device__ __forceinline__ void convolve_steps(const Rows<const Element>& x, const Rows<Element>& y,
                                                                    const Taps& taps, Window& past, int t) {
    Chunk chunks[COUNT];
#pragma unroll
    for (int i = 0; i < COUNT; i++) chunks[i].load(x[t + i]);
#pragma unroll
    for (int i = 0; i < COUNT; i++) {
        float current[VECTOR], s[VECTOR];
#pragma unroll
        for (int c = 0; c < VECTOR; c++) current[c] = chunks[i][c];
        convolve(s, taps, past, current);
        past.push(current);
#pragma unroll
        for (int c = 0; c < VECTOR; c++)
            if (SILU) s[c] *= sigmoid(s[c]);
        chunks[i].set(s);
        chunks[i].store(y[t + i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
    causal_conv_forward(const __grid_constant__ CausalConvForward p) {
    ConvPlace place(p.shape);
    if (!place.exists) return;
    Inputs inputs{place.rows<const Element>(p.x), place.state(p.initial_state, p.shape)};
    Rows<Element> y = place.rows<Element>(p.y);
    Taps taps(p.parameters, place.channel);
    Window past;
    inputs.load(past, place.first);
    int t = place.first;
    for (; t + STEPS <= place.end; t += STEPS) convolve_steps<STEPS>(inputs.tokens, y, taps, past, t);
    for (; t < place.end; t++) convolve_steps<1>(inputs.tokens, y, taps, past, t);

    if (float* state = place.state(p.final_state, p.shape); state && place.is_last()) {
        inputs.load(past, place.sequence.length); // all of it before any is written: it may be the same state
#pragma unroll
        for (int j = 0; j < PAST; j++)
#pragma unroll
            for (int c = 0; c < VECTOR; c++) state[c * PAST + j] = past.values[j][c];
    }
}
