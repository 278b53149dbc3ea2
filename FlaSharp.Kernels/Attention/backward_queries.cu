// The gradient of softmax attention's queries from its float32 sums, of which so many columns each lie as FloatTiles.
#include "fla/attention_backward.cuh"
#include "fla/vector.cuh"
#include "fla/warp_tile.cuh"

using namespace fla;

struct AttentionQueries {
    AttentionShape shape;
    TensorView grad_q;
    const float* sums; // see AttentionBackward
    int blocks;        // of the longest sequence
};

typedef TYPE T;
constexpr int K = KEY_TILE, QUERIES = QUERY_TILE, THREADS = 256, PIECES = K / 8;
constexpr int STEPS = QUERY_BLOCK * PIECES / THREADS, AT_ONCE = STEPS < 4 ? STEPS : 4; // whose loads are under way together
typedef FloatTile<QUERIES, SUM_COLUMNS> Sums;

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(const __grid_constant__ AttentionQueries p) {
    follow_stream();
    int head = blockIdx.x % p.shape.heads, block = blockIdx.x / p.shape.heads % p.blocks;
    AttentionSequence sequence(p.shape, blockIdx.x / p.shape.heads / p.blocks);
    if (block * QUERY_BLOCK >= sequence.queries.length) return;
    auto gradient = sequence.queries.rows<T>(p.grad_q, head);
#pragma unroll 1
    for (int step = 0; step < STEPS; step += AT_ONCE) {
        Vector<float, 8> sums[AT_ONCE];
        auto piece = [&](int i) { return (step + i) * THREADS + (int)threadIdx.x; };
        auto query_of = [&](int i) { return block * QUERY_BLOCK + piece(i) / PIECES; };
        auto column = [&](int i) { return piece(i) % PIECES * 8; };
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int query = query_of(i), col = column(i), tile = query / QUERIES;
            Range seen = BackwardTiles<KEYS_TILE, QUERIES>::seen(p.shape, sequence, tile);
            sums[i].clear();
            if (query < sequence.queries.length && col < p.shape.key_size && seen.end > seen.first)
                sums[i].load(p.sums + stored_query(p.shape, sequence.queries, head, tile * QUERIES) * K +
                             col / SUM_COLUMNS * (QUERIES * SUM_COLUMNS) + Sums(0).at(query % QUERIES, col % SUM_COLUMNS) / 4);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            int query = query_of(i), col = column(i), left = p.shape.key_size - col;
            if (query >= sequence.queries.length || left <= 0) continue;
            T* to = gradient[query] + col;
            float values[8];
#pragma unroll
            for (int c = 0; c < 8; c++) values[c] = sums[i][c] * p.shape.scale;
            if constexpr (VECTOR == 8) {
                Vector<T, 8> packed;
                packed.set(values);
                packed.store(to);
            } else {
#pragma unroll
                for (int c = 0; c < 8; c++)
                    if (c < left) to[c] = from_float<T>(values[c]);
            }
        }
    }
}
