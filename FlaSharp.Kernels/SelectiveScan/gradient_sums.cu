// What the backward pass of the selective scan left in parts, added up: dB and dC of blocks of channels, the gradients of A, D
// and the bias of sequences and segments. Neighbouring threads have neighbouring numbers, and each walks through the parts.
//
// Constants: ELEMENT of B and C; VECTOR (8: E, N and their tensors are multiples of it and aligned to 16 bytes; or 1).
#include "fla/decay_rate.cuh"
#include "fla/ptx.cuh"
#include "fla/scan_parts.cuh"
#include "fla/vector.cuh"

using namespace fla;

using Element = ELEMENT;
using Kept = ScanKept<Element>::Type;

struct SelectiveScanGradientSums {
    const Kept* matrix_parts;  // [2, group_blocks, tokens, G, N]: of B, of C
    Element* matrices[2];      // [tokens, G, N]
    const float* parts[3];     // [rows, E, N], [rows, E], [rows, E]: of A, D and the bias
    float* sums[3];
    const float* a_log;        // [E, N]: log(-A), where the gradient is by that; or null
    i64 matrix_size;           // tokens G N
    i64 sizes[3];              // E N, E, E; 0 of what nobody wants
    int group_blocks, rows;    // rows: sequences times segments
};

constexpr int FLOATS = VECTOR == 1 ? 1 : 4;

// The sum of `count` vectors, `distance` numbers apart.
template <class T, int N> __device__ __forceinline__ void add_parts(float (&sum)[N], const T* from, i64 distance, int count) {
#pragma unroll
    for (float& x : sum) x = 0;
#pragma unroll 8
    for (int i = 0; i < count; i++, from += distance) {
        Vector<T, N> part;
        part.load(from);
#pragma unroll
        for (int n = 0; n < N; n++) sum[n] += part[n];
    }
}

extern "C" __global__ void __launch_bounds__(256, 4)
    selective_scan_gradient_sums(const __grid_constant__ SelectiveScanGradientSums p) {
    follow_stream();
    i64 i = (i64)blockIdx.x * 256 + threadIdx.x;
    i64 count = p.matrix_size / VECTOR;
#pragma unroll
    for (int matrix = 0; matrix < 2; matrix++, i -= count) {
        if (i >= count) continue;
        float sum[VECTOR];
        add_parts(sum, p.matrix_parts + matrix * p.group_blocks * p.matrix_size + i * VECTOR, p.matrix_size, p.group_blocks);
        Vector<Element, VECTOR> total;
        total.set(sum), total.store(p.matrices[matrix] + i * VECTOR);
        return;
    }
#pragma unroll
    for (int vector = 0; vector < 3; vector++, i -= count) {
        count = p.sizes[vector] / FLOATS;
        if (i >= count) continue;
        float sum[FLOATS];
        add_parts(sum, p.parts[vector] + i * FLOATS, p.sizes[vector], p.rows);
        if (vector == 0 && p.a_log) {
            Vector<float, FLOATS> log;
            log.load(p.a_log + i * FLOATS);
#pragma unroll
            for (int n = 0; n < FLOATS; n++) sum[n] *= decay_rate(log[n], true);
        }
        Vector<float, FLOATS> total;
        total.set(sum), total.store(p.sums[vector] + i * FLOATS);
        return;
    }
}
