// What both passes of the decay gate, g = max(logsigmoid(x) / normalizer, minimum), share.
//
// Constants: ELEMENT of x (float, bf16 or fp16); THREADS of a block.
#pragma once
#include "fla/elementwise.cuh"
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

} // namespace fla
