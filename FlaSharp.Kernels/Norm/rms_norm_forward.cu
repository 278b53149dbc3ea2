// RMS norm, with a gate if GATED: y = n(x) w a or, `gate_first`, n(x a) w, with a = act(gate), n(u) = u / sqrt(mean(u^2) + eps).
// If ADDED, x is added to the residual first: sum = x + residual, y = n(sum) w.
#include "fla/rms_norm.cuh"

using namespace fla;

struct RmsNormForward {
    NormMatrix x, gate, residual, sum, y;
    NormWeight weight;
    float* scales; // [rows, groups], the factor of each norm; or null
    NormSizes sizes;
    float eps;
    int is_swish, gate_first;
};

// Adds x to the residual, and writes the sum. What is normed is what is written.
__device__ __forceinline__ void add_line(StreamChunk (&residual)[CHUNKS], const RmsNormForward& p, i64 row, bool exists,
                                         const NormPlace& place) {
    Chunk x[CHUNKS];
    load_line(x, p.x, row, exists, place, p.sizes);
#pragma unroll
    for (int c = 0; c < CHUNKS; c++) {
        float values[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = residual[c][i] + x[c][i];
        residual[c].set(values);
        if (exists && place.column(c) < p.sizes.size) store_chunk<Stream>(values, p.sum, row, c, place, p.sizes);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_forward(const __grid_constant__ RmsNormForward p) {
    NormPlace place(p.sizes);
    int turn = 0;
    for (i64 first = place.first_line; first < p.sizes.rows; first += place.step, turn ^= 1) {
        i64 row = first + place.line;
        bool exists = row < p.sizes.rows;
        StreamChunk x[CHUNKS];
        Chunk gate[CHUNKS];
        load_line(x, ADDED ? p.residual : p.x, row, exists, place, p.sizes);
        if (ADDED) add_line(x, p, row, exists, place);
        if (GATED) load_line(gate, p.gate, row, exists, place, p.sizes);
        prefetch_line<Element>(p.x, row + place.step, place, p.sizes);
        if (GATED) prefetch_line<Element>(p.gate, row + place.step, place, p.sizes);
        if (ADDED) prefetch_line<Stream>(p.residual, row + place.step, place, p.sizes);
        auto gate_of = [&](int c, int i) { return GATED ? Gate(gate[c][i], p.is_swish, p.gate_first) : Gate(); };

        float squares = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                float u = x[c][i] * gate_of(c, i).inner;
                squares += u * u;
            }
        float scale = rsqrtf(sum_line(squares, turn) / p.sizes.size + p.eps);
        if (exists && place.lane == 0 && p.scales) p.scales[row * p.sizes.groups + place.group] = scale;

#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            float values[VECTOR];
            p.weight.load(values, place, p.sizes, c);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                Gate g = gate_of(c, i);
                values[i] *= x[c][i] * g.inner * scale * g.outer;
            }
            if (exists && place.column(c) < p.sizes.size) store_chunk<Element>(values, p.y, row, c, place, p.sizes);
        }
    }
}
