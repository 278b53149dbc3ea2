// The gradient of softmax attention's sinks: for each head the sum over blocks of queries, always in the same order.
#include "fla/attention_backward.cuh"

using namespace fla;

struct AttentionSinks {
    AttentionShape shape;
    const float* blocks; // of attention_backward_delta
    float* sinks;        // [H]
};

constexpr int THREADS = 256;

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_sinks(const __grid_constant__ AttentionSinks p) {
    follow_stream();
    int head = blockIdx.x;
    float sum = 0.f;
    for (int s = 0; s < p.shape.queries.count; s++) {
        Sequence sequence(p.shape.queries, s);
        for (int first = threadIdx.x * QUERY_BLOCK; first < sequence.length; first += THREADS * QUERY_BLOCK)
            sum += p.blocks[stored_query(p.shape, sequence, head, first) / QUERY_BLOCK];
    }
    __shared__ float sums[THREADS];
    sums[threadIdx.x] = sum;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) p.sinks[head] = sums[0];
}
