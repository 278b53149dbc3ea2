// Joins the runs of keys that attention_decode treated on their own. A block has one row; its warps take turns at the runs.
#include "fla/attention_decode.cuh"

using namespace fla;

constexpr int THREADS = 32 * WARPS, COLUMNS = 8; // of a thread: values have up to 256 features
constexpr int BATCH = 4;                         // runs whose loads are under way at once

struct AttentionDecodeJoin {
    DecodeShape shape;
    TensorView o;
    const float* parts;    // [.., splits, ROWS, value_size]
    const float2* weights; // [.., splits, ROWS]
};

extern "C" __global__ void __launch_bounds__(THREADS) attention_decode_join(const __grid_constant__ AttentionDecodeJoin p) {
    follow_stream();
    __shared__ float2 weights[WARPS];
    __shared__ float values[WARPS][32 * COLUMNS];
    const DecodeShape& shape = p.shape;
    int r = blockIdx.x % ROWS, block = blockIdx.x / ROWS, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    int tile = block % shape.tiles, kv_head = block / shape.tiles % shape.kv_heads;
    DecodePlace place(shape, block / shape.tiles / shape.kv_heads, tile, kv_head);
    DecodeRow row(shape, place, r);
    if (!row.exists) return;

    float max = -infinity(), weight = 0, sums[COLUMNS] = {};
    for (int first = warp; first < place.runs(shape); first += WARPS * BATCH) {
        float2 runs[BATCH];
        float values[BATCH][COLUMNS];
        float largest = max;
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            int split = first + b * WARPS;
            bool exists = split < place.runs(shape);
            i64 part = place.part(shape, split) * ROWS + r;
            runs[b] = exists ? p.weights[part] : make_float2(-infinity(), 0.f);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) {
                int c = 32 * i + lane;
                values[b][i] = exists && c < shape.value_size ? p.parts[part * shape.value_size + c] : 0.f;
            }
        }
#pragma unroll
        for (int b = 0; b < BATCH; b++) largest = fmaxf(largest, runs[b].x);
        auto rescale = [&](float score) { return pow2(score - finite_max(largest)); };
        weight *= rescale(max);
#pragma unroll
        for (int i = 0; i < COLUMNS; i++) sums[i] *= rescale(max);
#pragma unroll
        for (int b = 0; b < BATCH; b++) {
            weight += runs[b].y * rescale(runs[b].x);
#pragma unroll
            for (int i = 0; i < COLUMNS; i++) sums[i] += values[b][i] * rescale(runs[b].x);
        }
        max = largest;
    }
    if (lane == 0) weights[warp] = make_float2(max, weight);
#pragma unroll
    for (int i = 0; i < COLUMNS; i++) values[warp][32 * i + lane] = sums[i];
    __syncthreads();

    float sink = shape.sinks ? shape.sinks[row.head] * LOG2E : -infinity(), largest = sink, factors[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) largest = fmaxf(largest, weights[w].x);
    float total = pow2(sink - finite_max(largest));
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        factors[w] = pow2(weights[w].x - finite_max(largest));
        total += weights[w].y * factors[w];
    }
    for (int c = threadIdx.x; c < shape.value_size; c += THREADS) {
        float sum = 0;
#pragma unroll
        for (int w = 0; w < WARPS; w++) sum += values[w][c] * factors[w];
        place.sequence.rows<Element>(p.o, row.head)[row.query][c] = from_float<Element>(sum * inverse(total));
    }
}
