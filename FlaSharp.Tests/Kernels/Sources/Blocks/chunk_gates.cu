// Constants: TYPE of 16 bits, CHUNK, KEYS, BLOCK_THREADS.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/gate_frame.cuh"

using namespace fla;

constexpr int C = CHUNK, K = KEYS, THREADS = BLOCK_THREADS;
typedef TYPE T;
typedef ChunkGates<C, K, THREADS> Gates;
typedef SharedTile<bf16, C, K> Tile;

constexpr int TOTALS = 3 * Tile::BYTES;

// The decays of a chunk, with natural log-decays [C, K].
__device__ inline Gates sum_up(const float* g, const Gates::Totals& totals) {
    Gates gates(threadIdx.x);
    gates.sum_up([&](int row, int col) { return make_float2(g[row * K + col], g[row * K + col + 1]); });
    gates.store_totals(totals);
    __syncthreads();
    gates.join(totals);
    return gates;
}

// Of x [C, K]: z [C + 2, K] = sums in log2, those of the middle and of the end; w [THREADS]: whether any is too strong for a
// frame.
extern "C" __global__ void __launch_bounds__(THREADS) gate_sums(const __grid_constant__ BlockTest p) {
    Gates gates = sum_up(static_cast<const float*>(p.x), Gates::Totals(shared_memory() + TOTALS));
    float* z = static_cast<float*>(p.z);
    for (int c = 0; c < 2; c++) {
        for (int i = 0; i < Gates::ROWS; i++) z[(gates.row + i) * K + gates.col + c] = gates.before[c] + gates.sum[i][c];
        if (gates.row == 0) z[C * K + gates.col + c] = gates.middle[c], z[(C + 1) * K + gates.col + c] = gates.end[c];
    }
    static_cast<int*>(p.w)[threadIdx.x] = __syncthreads_or(gates.too_strong());
}

// z [2, C, K] = 3 y 2^(G - middle) and y 2^(end - G) for y [C, K] of T, in bfloat16.
extern "C" __global__ void __launch_bounds__(THREADS) gate_scale(const __grid_constant__ BlockTest p) {
    Gates gates = sum_up(static_cast<const float*>(p.x), Gates::Totals(shared_memory() + TOTALS));
    for (int form = 0; form < 2; form++) {
        Tile tile(shared_memory());
        fill(tile, reinterpret_cast<const bf16*>(p.y));
        float of_queries[2], of_keys[2];
        gates.origins(false, true, of_queries, of_keys);
        if (form == 0)
            gates.scale<T>(tile, 1.f, of_queries, 3.f);
        else
            gates.scale<T>(tile, -1.f, of_keys, 1.f);
        dump(tile, static_cast<bf16*>(p.z) + form * C * K);
    }
}

// z [levels, C, K] = the operands of binary splitting, from halves of C / 2 to those of 1: of y [2, C, K] of T, queries times 2
// and keys.
extern "C" __global__ void __launch_bounds__(THREADS) gate_levels(const __grid_constant__ BlockTest p) {
    Gates::Totals totals(shared_memory() + TOTALS);
    Gates gates = sum_up(static_cast<const float*>(p.x), totals);
    Tile q(shared_memory()), k(shared_memory() + Tile::BYTES), split(shared_memory() + 2 * Tile::BYTES);
    fill(q, static_cast<const bf16*>(p.y));
    fill(k, static_cast<const bf16*>(p.y) + C * K);
    bf16* z = static_cast<bf16*>(p.z);
    for (int half = C / 2; half > 0; half /= 2, z += C * K) {
        gates.split<T>(split, q, k, half, 2.f, totals);
        dump(split, z);
    }
}

// z [C, K] = sums of y [C, K] from each row to the chunk's end, and 100.
extern "C" __global__ void __launch_bounds__(THREADS) gate_sums_to_end(const __grid_constant__ BlockTest p) {
    Gates gates(threadIdx.x);
    const float* y = static_cast<const float*>(p.y);
    float x[Gates::ROWS][2];
    float2 beyond = make_float2(100.f, 100.f);
    for (int i = 0; i < Gates::ROWS; i++)
        for (int c = 0; c < 2; c++) x[i][c] = y[(gates.row + i) * K + gates.col + c];
    gates.sum_to_end(x, beyond, Gates::Totals(shared_memory() + TOTALS), [] { __syncthreads(); });
    for (int i = 0; i < Gates::ROWS; i++) {
        static_cast<float*>(p.z)[(gates.row + i) * K + gates.col] = x[i][0] + beyond.x;
        static_cast<float*>(p.z)[(gates.row + i) * K + gates.col + 1] = x[i][1] + beyond.y;
    }
}
