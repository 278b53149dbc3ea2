// The gradients of rms_norm_forward.cu. With u = x inner, n = u r and y = n w outer (inner or outer is the activated gate):
//     dn = dy w outer,  du = r (dn - n mean(dn n)),  dx = du inner,  da = du x or dy w n,  dgate = da act'(gate)
// If ADDED, x is the sum that was normed. The gradient of what else became of it adds to dx, which the residual has, too.
// The gradient of w is a sum over rows, dy outer n. Each block sums its own rows in order, and writes one part.
#include "fla/rms_norm.cuh"

using namespace fla;

struct RmsNormBackward {
    NormMatrix x, gate, dy, dsum, dx, dgate, dresidual; // dsum: or none
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
    float sums[PER_THREAD] = {};
    int turn = 0;
    for (i64 first = place.first_line; first < p.sizes.rows; first += place.step, turn ^= 1) {
        i64 row = first + place.line;
        bool exists = row < p.sizes.rows;
        StreamChunk x[CHUNKS], dsum[CHUNKS];
        Chunk dy[CHUNKS], gate[CHUNKS];
        load_line(x, p.x, row, exists, place, p.sizes);
        load_line(dy, p.dy, row, exists, place, p.sizes);
        if (GATED) load_line(gate, p.gate, row, exists, place, p.sizes);
        if (ADDED) load_line(dsum, p.dsum, row, exists && p.dsum.data, place, p.sizes);
        prefetch_line<Stream>(p.x, row + place.step, place, p.sizes);
        prefetch_line<Element>(p.dy, row + place.step, place, p.sizes);
        if (GATED) prefetch_line<Element>(p.gate, row + place.step, place, p.sizes);
        if (ADDED && p.dsum.data) prefetch_line<Stream>(p.dsum, row + place.step, place, p.sizes);
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
                x_gradients[i] = du * g.inner + (ADDED ? dsum[c][i] : 0);
                gate_gradients[i] = (p.gate_first ? du * x[c][i] : dy[c][i] * weights[i] * n) * g.slope;
                sums[c * VECTOR + i] += dy[c][i] * g.outer * n;
            }
            if (exists && place.column(c) < p.sizes.size) {
                store_chunk<Element>(x_gradients, p.dx, row, c, place, p.sizes);
                if (GATED) store_chunk<Element>(gate_gradients, p.dgate, row, c, place, p.sizes);
                if (ADDED) store_chunk<Stream>(x_gradients, p.dresidual, row, c, place, p.sizes);
            }
        }
    }
    if (p.weight_parts)
        write_part(p.weight_parts + (i64)blockIdx.x * p.sizes.size, sums, place, p.sizes.size);
}
