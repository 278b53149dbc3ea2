// What both passes of the decay gate, g = max(logsigmoid(x) / normalizer, minimum), share.
//
// Constants: ELEMENT of x (float, bf16 or fp16); THREADS of a block.
#pragma once
#include "fla/ptx.cuh"
#include "fla/vector.cuh"

namespace fla {

using Element = ELEMENT;
constexpr int VALUES = 16 / sizeof(Element); // for one thread, where all is aligned

struct DecayGate {
    float normalizer;
    float minimum; // -inf for none
};

// logsigmoid(x) / normalizer, and what it comes from. exp(-|x|) keeps its precision at both ends.
struct LogDecay {
    float value, slope; // slope: of logsigmoid, sigmoid(-x)

    __device__ __forceinline__ LogDecay(float x, const DecayGate& gate) {
        float e = pow2(-LOG2E * fabsf(x));
        value = (fminf(x, 0.f) - log1pf(e)) / gate.normalizer;
        slope = __fdividef(x > 0 ? e : 1.f, 1.f + e);
    }
};

// Calls body(Number<N>, first) for N neighbours at a time: whole vectors where all is aligned, the rest one by one.
template <int N> struct Number { static constexpr int value = N; };
template <class Body> __device__ __forceinline__ void for_each_vector(i64 count, int aligned, Body body) {
    i64 thread = (i64)blockIdx.x * THREADS + threadIdx.x, threads = (i64)gridDim.x * THREADS;
    i64 vectors = aligned ? count / VALUES : 0;
    for (i64 i = thread; i < vectors; i += threads) body(Number<VALUES>(), i * VALUES);
    for (i64 i = vectors * VALUES + thread; i < count; i += threads) body(Number<1>(), i);
}

} // namespace fla
