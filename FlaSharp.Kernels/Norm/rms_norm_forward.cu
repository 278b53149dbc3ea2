// RMS norm, with a gate if GATED: y = n(x) w a or, `gate_first`, n(x a) w, with a = act(gate), n(u) = u / sqrt(mean(u^2) + eps).
#include "fla/rms_norm.cuh"

using namespace fla;

struct RmsNormForward {
    NormMatrix x, gate, y;
    NormWeight weight;
    float* scales; // [rows, groups], the factor of each norm; or null
    NormSizes sizes;
    float eps;
    int is_swish, gate_first;
};

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_forward(const __grid_constant__ RmsNormForward p) {
    NormPlace place(p.sizes);
    Element* y = static_cast<Element*>(p.y.data) + (i64)place.group * p.sizes.size;
    int turn = 0;
    for (i64 first = place.first_line; first < p.sizes.rows; first += place.step, turn ^= 1) {
        i64 row = first + place.line;
        bool exists = row < p.sizes.rows;
        Chunk x[CHUNKS], gate[CHUNKS];
        load_line(x, p.x, row, exists, place, p.sizes);
        if (GATED) load_line(gate, p.gate, row, exists, place, p.sizes);
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
            x[c].set(values);
            if (exists && place.column(c) < p.sizes.size) x[c].store(y + row * p.y.row + place.column(c));
        }
    }
}
