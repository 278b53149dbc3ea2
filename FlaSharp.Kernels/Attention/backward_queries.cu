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
typedef FloatTile<QUERIES, SUM_COLUMNS> Sums;

extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_queries(const __grid_constant__ AttentionQueries p) {
    follow_stream();
    int head = blockIdx.x % p.shape.heads, block = blockIdx.x / p.shape.heads % p.blocks;
    AttentionSequence sequence(p.shape, blockIdx.x / p.shape.heads / p.blocks);
    if (block * QUERY_BLOCK >= sequence.queries.length) return;
    auto gradient = sequence.queries.rows<T>(p.grad_q, head);
#pragma unroll 2
    for (int i = threadIdx.x; i < QUERY_BLOCK * PIECES; i += THREADS) {
        int query = block * QUERY_BLOCK + i / PIECES, col = i % PIECES * 8, tile = query / QUERIES, left = p.shape.key_size - col;
        if (query >= sequence.queries.length || left <= 0) continue;
        Range seen = BackwardTiles<KEYS_TILE, QUERIES>::seen(p.shape, sequence, tile);
        Vector<float, 8> sums;
        sums.clear();
        if (seen.end > seen.first)
            sums.load(p.sums + stored_query(p.shape, sequence.queries, head, tile * QUERIES) * K +
                      col / SUM_COLUMNS * (QUERIES * SUM_COLUMNS) + Sums(0).at(query % QUERIES, col % SUM_COLUMNS) / 4);
        T* to = gradient[query] + col;
        float values[8];
#pragma unroll
        for (int c = 0; c < 8; c++) values[c] = sums[c] * p.shape.scale;
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
