// Constants: TYPE of 16 bits, KEYS, BLOCK_THREADS.
#include "Blocks/block_test.cuh"
#include "Blocks/tiles.cuh"
#include "fla/pair_rows.cuh"

using namespace fla;

constexpr int C = 64, K = KEYS, THREADS = BLOCK_THREADS;
typedef TYPE T;
typedef ChunkGates<C, K, THREADS> Gates;
typedef PairRows<C, THREADS / 32> Pairs;
typedef SharedTile<bf16, C, K> Tile;

constexpr int PAIRS = 3 * Tile::BYTES, DIAGONAL = PAIRS + 2 * C * C, TOTALS = DIAGONAL + 4 * C;

__device__ inline void store(const Pairs& pairs, const BlockTest& p) {
    SharedTile<bf16, C, C> tile(shared_memory() + PAIRS);
    pairs.store(tile);
    dump(tile, static_cast<bf16*>(p.z));
}

// z [C, C] = x y^T where j <= i, in bfloat16; w [C]: the pairs (t, t). x and y are [C, K] in bfloat16.
extern "C" __global__ void __launch_bounds__(THREADS) pair_products(const __grid_constant__ BlockTest p) {
    Tile x(shared_memory()), y(shared_memory() + Tile::BYTES);
    fill(x, static_cast<const bf16*>(p.x));
    fill(y, static_cast<const bf16*>(p.y));
    Pairs pairs(threadIdx.x / 32, threadIdx.x % 32);
    pairs.multiply(x, y);
    pairs.store_diagonal(shared_memory() + DIAGONAL);
    pairs.mask([](int i, int j) { return j <= i; });
    store(pairs, p);
    if (threadIdx.x < C) static_cast<float*>(p.w)[threadIdx.x] = shared_load<float>(shared_memory() + DIAGONAL + 4 * threadIdx.x);
}

// z [C, C] = 1, and 2 x y^T more where i + j is odd, in the blocks of 16 at and below the diagonal. x and y are [C, K] of T.
extern "C" __global__ void __launch_bounds__(THREADS) pair_sums(const __grid_constant__ BlockTest p) {
    Tile x(shared_memory()), y(shared_memory() + Tile::BYTES);
    fill(x, static_cast<const bf16*>(p.x));
    fill(y, static_cast<const bf16*>(p.y));
    Pairs pairs(threadIdx.x / 32, threadIdx.x % 32);
#pragma unroll
    for (auto& block : pairs.sum)
#pragma unroll
        for (auto& half : block)
#pragma unroll
            for (float& sum : half) sum = 1.f;
    pairs.add<T>(x, y, 2.f, [](int i, int j) { return j <= i; }, [](int i, int j) { return (i + j) % 2 == 1; });
    store(pairs, p);
}

// z [C, C] = q k^T under the decays between i >= j, for y [2, C, K] of T and natural log-decays x [C, K], in bfloat16.
extern "C" __global__ void __launch_bounds__(THREADS) split_pairs(const __grid_constant__ BlockTest p) {
    Tile q(shared_memory()), k(shared_memory() + Tile::BYTES), split(shared_memory() + 2 * Tile::BYTES);
    Gates::Totals totals(shared_memory() + TOTALS);
    fill(q, static_cast<const bf16*>(p.y));
    fill(k, static_cast<const bf16*>(p.y) + C * K);
    const float* g = static_cast<const float*>(p.x);
    Gates gates(threadIdx.x);
    gates.sum_up([&](int row, int col) { return make_float2(g[row * K + col], g[row * K + col + 1]); });
    gates.store_totals(totals);
    __syncthreads();
    gates.join(totals);
    Pairs pairs(threadIdx.x / 32, threadIdx.x % 32);
    add_split_pairs<T>(pairs, gates, q, k, split, 1.f, totals, [] { __syncthreads(); });
    store(pairs, p);
}
