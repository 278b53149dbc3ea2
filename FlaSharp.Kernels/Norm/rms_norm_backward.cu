// The gradients of rms_norm_forward.cu. With u = x inner, n = u r and y = n w outer (inner or outer is the activated gate):
//     dn = dy w outer,  du = r (dn - n mean(dn n)),  dx = du inner,  da = du x or dy w n,  dgate = da act'(gate)
// The gradient of w is a sum over rows, dy outer n. Each block sums its own rows in order, and writes one part.
#include "fla/rms_norm.cuh"

using namespace fla;

struct RmsNormBackward {
    NormMatrix x, gate, dy, dx, dgate;
    NormWeight weight;
    const float* scales; // [rows, groups], of the forward pass: r
    float* weight_parts; // [blocks / groups, groups * size], or null
    NormSizes sizes;
    int is_swish, gate_first;
};

// Adds up the sums of a block's lines and writes them.
__device__ __forceinline__ void write_part(float* part, const float (&sums)[PER_THREAD], const NormPlace& place, int size) {
    if constexpr (LINES == 1) {
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
                if (place.column(c) < size) part[place.column(c) + i] = sums[c * VECTOR + i];
    } else {
        __shared__ float lines[LINES][COLUMNS];
#pragma unroll
        for (int c = 0; c < CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < VECTOR; i++) lines[place.line][place.column(c) + i] = sums[c * VECTOR + i];
        __syncthreads();
        for (int column = threadIdx.x; column < size; column += THREADS) {
            float sum = 0;
#pragma unroll 4
            for (int line = 0; line < LINES; line++) sum += lines[line][column];
            part[column] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) rms_norm_backward(const __grid_constant__ RmsNormBackward p) {
    NormPlace place(p.sizes);
    i64 group_column = (i64)place.group * p.sizes.size;
    Element* dx = static_cast<Element*>(p.dx.data) + group_column;
    Element* dgate = static_cast<Element*>(p.dgate.data) + group_column;
    float sums[PER_THREAD] = {};
    int turn = 0;
    for (i64 first = place.first_line; first < p.sizes.rows; first += place.step, turn ^= 1) {
        i64 row = first + place.line;
        bool exists = row < p.sizes.rows;
        Chunk x[CHUNKS], dy[CHUNKS], gate[CHUNKS];
        load_line(x, p.x, row, exists, place, p.sizes);
        load_line(dy, p.dy, row, exists, place, p.sizes);
        if (GATED) load_line(gate, p.gate, row, exists, place, p.sizes);
        float scale = exists ? p.scales[row * p.sizes.groups + place.group] : 0;
        auto gate_of = [&](int c, int i) { return GATED ? Gate(gate[c][i], p.is_swish, p.gate_first) : Gate(); };

        float products = 0;
#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            float weights[VECTOR];
            p.weight.load(weights, place, p.sizes, c);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                Gate g = gate_of(c, i);
                products += x[c][i] * g.inner * (dy[c][i] * weights[i] * g.outer);
            }
        }
        float mean = sum_line(products, turn) * scale / p.sizes.size;

#pragma unroll
        for (int c = 0; c < CHUNKS; c++) {
            float weights[VECTOR], x_gradients[VECTOR], gate_gradients[VECTOR];
            p.weight.load(weights, place, p.sizes, c);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) {
                Gate g = gate_of(c, i);
                float n = x[c][i] * g.inner * scale;
                float du = (dy[c][i] * weights[i] * g.outer - n * mean) * scale;
                x_gradients[i] = du * g.inner;
                gate_gradients[i] = (p.gate_first ? du * x[c][i] : dy[c][i] * weights[i] * n) * g.slope;
                sums[c * VECTOR + i] += dy[c][i] * g.outer * n;
            }
            if (exists && place.column(c) < p.sizes.size) {
                Chunk gradients;
                gradients.set(x_gradients);
                gradients.store(dx + row * p.dx.row + place.column(c));
                if (GATED) {
                    gradients.set(gate_gradients);
                    gradients.store(dgate + row * p.dgate.row + place.column(c));
                }
            }
        }
    }
    if (p.weight_parts)
        write_part(p.weight_parts + (i64)blockIdx.x * p.sizes.size, sums, place, p.sizes.size);
}
