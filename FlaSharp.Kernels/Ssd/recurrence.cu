// The state space duality step by step, for a few tokens: one pass over the state, in float32, which may be updated in place.
// A warp has ROWS channels of a head, its lanes neighbouring numbers of their states.
#include "fla/ssd.cuh"
#include "fla/vector.cuh"

using namespace fla;

struct SsdRecurrence {
    Sequences sequences;
    TensorView x, dt, b, c, z, y; // dt is [B, T, H, 1]; z may be absent
    SsdStepRule rule;
    const float* direct;  // D, or null
    const float* initial; // [sequences, H, P, N], or null for 0
    float* final;         // the same place as the initial one, or null
    int heads, group, head_size, state_size;
    int direct_head, direct_channel; // strides of D
};

typedef TYPE T;
typedef STEP_TYPE S;
constexpr int LANE = STATE_TILE / 32, PIECES = LANE / VECTOR; // numbers of a lane's part of a state

struct StateRow {
    Vector<float, VECTOR> parts[PIECES];

    __device__ __forceinline__ void load(const float* row, int first, int size) {
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            parts[i].clear();
            if (row && first + i * VECTOR < size) parts[i].load(row + first + i * VECTOR);
        }
    }
    __device__ __forceinline__ void store(float* row, int first, int size) const {
#pragma unroll
        for (int i = 0; i < PIECES; i++)
            if (first + i * VECTOR < size) parts[i].store(row + first + i * VECTOR);
    }
    // h = decay h + x b; its product with c.
    __device__ __forceinline__ float update(float decay, float x, const float (&b)[LANE], const float (&c)[LANE]) {
        float sum = 0.f;
#pragma unroll
        for (int i = 0; i < PIECES; i++) {
            float values[VECTOR];
#pragma unroll
            for (int j = 0; j < VECTOR; j++) {
                values[j] = decay * parts[i][j] + x * b[i * VECTOR + j];
                sum += values[j] * c[i * VECTOR + j];
            }
            parts[i].set(values);
        }
        return sum;
    }
};

__device__ __forceinline__ void load_row(float (&values)[LANE], const T* row, int first, int size) {
#pragma unroll
    for (int i = 0; i < LANE; i++) values[i] = first + i < size ? to_float(row[first + i]) : 0.f;
}

extern "C" __global__ void __launch_bounds__(THREADS) ssd_recurrence(const __grid_constant__ SsdRecurrence p) {
    int lane = threadIdx.x % 32, head = blockIdx.x % p.heads, part = lane * LANE;
    int channel = (blockIdx.y * (THREADS / 32) + threadIdx.x / 32) * ROWS;
    Sequence sequence(p.sequences, blockIdx.x / p.heads);
    if (channel >= p.head_size) return;

    i64 state = ((i64)sequence.index * p.heads + head) * p.head_size;
    StateRow rows[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
        rows[r].load(p.initial && channel + r < p.head_size ? p.initial + (state + channel + r) * p.state_size : nullptr, part,
                     p.state_size);

    auto x = sequence.rows<T>(p.x, head), b = sequence.rows<T>(p.b, head / p.group), c = sequence.rows<T>(p.c, head / p.group);
    auto y = sequence.rows<T>(p.y, head), z = sequence.rows<T>(p.z, head);
    auto dt = sequence.rows<S>(p.dt, head);
    int own = channel + lane % ROWS; // of the channels, the one that this lane stores
    bool stores = lane < ROWS && own < p.head_size;
    float direct = p.direct && stores ? p.direct[(i64)head * p.direct_head + own * p.direct_channel] : 0.f;
    float rate = p.rule.rate(head);
    for (int t = 0; t < sequence.length; t++) {
        float step = SsdStep(to_float(*dt[t]), p.rule, head).value, decay = expf(step * rate);
        float of_b[LANE], of_c[LANE], output = 0.f;
        load_row(of_b, b[t], part, p.state_size);
        load_row(of_c, c[t], part, p.state_size);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float input = channel + r < p.head_size ? to_float(x[t][channel + r]) : 0.f;
            float sum = rows[r].update(decay, step * input, of_b, of_c);
#pragma unroll
            for (int mask = 1; mask < 32; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
            if (lane == r) output = sum + direct * input;
        }
        if (!stores) continue;
        if (p.z.data) {
            float gate = to_float(z[t][own]);
            output *= gate / (1.f + expf(-gate));
        }
        y[t][own] = from_float<T>(output);
    }
    if (p.final)
#pragma unroll
        for (int r = 0; r < ROWS; r++)
            if (channel + r < p.head_size) rows[r].store(p.final + (state + channel + r) * p.state_size, part, p.state_size);
}
