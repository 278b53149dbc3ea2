// Adds up the parts of dweight and dbias that causal_conv_backward.cu left, in order. Constants: as in fla/causal_conv.cuh.
#include "fla/causal_conv.cuh"

using namespace fla;

struct CausalConvSum {
    const float* parts;
    int channels, rows; // rows: of blocks
    void *dweight, *dbias; // [channels, WIDTH], [channels]; or null
    int float_weight, float_bias;
};

__device__ __forceinline__ void put(void* to, i64 index, float value, int is_float) {
    if (is_float)
        static_cast<float*>(to)[index] = value;
    else
        static_cast<Element*>(to)[index] = from_float<Element>(value);
}

extern "C" __global__ void __launch_bounds__(THREADS) causal_conv_sum(const __grid_constant__ CausalConvSum p) {
    int groups = (p.channels + GROUP - 1) / GROUP;
    int line = blockIdx.x * WARPS + threadIdx.x / 32, lane = threadIdx.x % 32; // of a group, tap and place in the vector
    if (line >= groups * (WIDTH + 1) * VECTOR) return;
    float sum = 0;
#pragma unroll 8
    for (int row = 0; row < p.rows; row++) sum += p.parts[((i64)row * groups * (WIDTH + 1) * VECTOR + line) * 32 + lane];
    int tap = line / VECTOR % (WIDTH + 1);
    i64 channel = (i64)line / ((WIDTH + 1) * VECTOR) * GROUP + lane * VECTOR + line % VECTOR;
    if (channel >= p.channels) return;
    if (tap == WIDTH) {
        if (p.dbias) put(p.dbias, channel, sum, p.float_bias);
    } else if (p.dweight) {
        put(p.dweight, channel * WIDTH + tap, sum, p.float_weight);
    }
}
