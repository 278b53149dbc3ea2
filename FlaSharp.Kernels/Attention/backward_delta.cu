// Before the gradients of softmax attention: for each query the product of its output and that one's gradient, which is the mean
// of its weights' gradients; the logarithm of its denominator to base 2; and the sinks' gradient, a sum for each block of
// queries.
#include "fla/attention_backward.cuh"
#include "fla/vector.cuh"

using namespace fla;

struct AttentionDelta {
    AttentionShape shape;
    TensorView output, grad_output;
    const float* log_sum_exp; // [B, H, T]
    float *logs, *deltas;     // see AttentionBackward
    float* sinks;             // [blocks, H], or null
    int* turns;
    int time;                 // T; of packed sequences all of their tokens
    int turn_count;           // in a block
    int blocks;               // of the longest sequence
};

typedef TYPE T;
constexpr int LANES = VALUE_TILE / 8 < 32 ? VALUE_TILE / 8 : 32, ROWS = 32 / LANES, WARPS = 8; // a warp has ROWS rows in a step
constexpr int STEPS = QUERY_BLOCK / (WARPS * ROWS), AT_ONCE = STEPS < 4 ? STEPS : 4; // steps whose loads are under way together

// Eight columns of a row, or as many of them as there are, and 0.
struct Piece {
    static constexpr int WIDTH = VECTOR < 4 ? 1 : VECTOR;
    Vector<T, WIDTH> parts[8 / WIDTH];

    __device__ __forceinline__ void load(const T* row, int col, int size, bool exists) {
#pragma unroll
        for (int i = 0; i < 8 / WIDTH; i++) {
            parts[i].clear();
            if (exists && col + i * WIDTH < size) parts[i].load(row + col + i * WIDTH);
        }
    }
    __device__ __forceinline__ float product(const Piece& other) const {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < 8; i++) sum += parts[i / WIDTH][i % WIDTH] * other.parts[i / WIDTH][i % WIDTH];
        return sum;
    }
};

extern "C" __global__ void __launch_bounds__(32 * WARPS) attention_backward_delta(const __grid_constant__ AttentionDelta p) {
    follow_stream();
    int head = blockIdx.x % p.shape.heads, block = blockIdx.x / p.shape.heads % p.blocks;
    Sequence sequence(p.shape.queries, blockIdx.x / p.shape.heads / p.blocks);
    int first = block * QUERY_BLOCK, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    if (first >= sequence.length) return;
    i64 stored = stored_query(p.shape, sequence, head, first);
    if (threadIdx.x < p.turn_count) p.turns[stored / QUERY_BLOCK * p.turn_count + threadIdx.x] = 0;

    const float* logs = p.log_sum_exp + (sequence.batch * p.shape.heads + head) * p.time + sequence.start;
    auto output = sequence.rows<T>(p.output, head), gradient = sequence.rows<T>(p.grad_output, head);
    float sink = p.sinks ? p.shape.sinks[head] : 0.f, sinks = 0.f;
#pragma unroll 1
    for (int step = 0; step < STEPS; step += AT_ONCE) {
        Piece outputs[AT_ONCE], gradients[AT_ONCE];
        float its_logs[AT_ONCE];
        auto row_of = [&](int i) { return ((step + i) * WARPS + warp) * ROWS + lane / LANES; };
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int query = first + row_of(i);
            bool exists = query < sequence.length;
            outputs[i].load(output[query], lane % LANES * 8, p.shape.value_size, exists);
            gradients[i].load(gradient[query], lane % LANES * 8, p.shape.value_size, exists);
            its_logs[i] = exists && lane % LANES == 0 ? logs[query] : -__int_as_float(0x7f800000);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            float delta = outputs[i].product(gradients[i]), log = its_logs[i];
#pragma unroll
            for (int other = LANES / 2; other > 0; other /= 2) delta += __shfl_xor_sync(~0u, delta, other);
            if (lane % LANES != 0) continue;
            bool sees = log > -__int_as_float(0x7f800000) || log != log; // NaN goes on
            p.logs[stored + row_of(i)] = sees ? log * LOG2E : __int_as_float(0x7f800000);
            p.deltas[stored + row_of(i)] = delta;
            if (sees) sinks -= pow2((sink - log) * LOG2E) * delta;
        }
    }
    if (!p.sinks) return;
    __shared__ float sums[32 * WARPS];
    sums[threadIdx.x] = sinks;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0.f;
        for (int i = 0; i < 32 * WARPS; i += LANES) sum += sums[i];
        p.sinks[stored / QUERY_BLOCK] = sum;
    }
}
