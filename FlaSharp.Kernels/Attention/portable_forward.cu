// Softmax attention, forward, on any GPU: a block works on the queries of one head, a warp on 16 of them, with the weights and
// the output in registers, key tile after key tile as Dao 2023 (arXiv:2307.08691). The next tile comes meanwhile.
#include "fla/attention_forward.cuh"

using namespace fla;

struct AttentionForward {
    TensorView q, k, v;
    AttentionCall call;
};

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, KEYS = KEY_ROWS, ROWS = 16 * WARPS, THREADS = 32 * WARPS;

typedef AttentionTile<ROWS, KEYS> Tile;
typedef SharedTile<T, ROWS, K> QueryTile;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;

struct Memory {
    u32 base = shared_memory();

    __device__ __forceinline__ QueryTile query() const { return QueryTile(base); }
    __device__ __forceinline__ KeyTile key(int i) const { return KeyTile(base + QueryTile::BYTES + i % 2 * KeyTile::BYTES); }
    __device__ __forceinline__ ValueTile value(int i) const {
        return ValueTile(base + QueryTile::BYTES + 2 * KeyTile::BYTES + i % 2 * ValueTile::BYTES);
    }
};
static_assert(QueryTile::BYTES + 2 * (KeyTile::BYTES + ValueTile::BYTES) == SHARED);

extern "C" __global__ void __launch_bounds__(THREADS) attention_forward(const __grid_constant__ AttentionForward p) {
    const AttentionShape& shape = p.call.shape;
    Tile tile(p.call, blockIdx.x);
    if (!tile.exists()) return;
    Memory memory;
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, group = tile.head / shape.group;
    // `thread` is made opaque: addresses that depend on it would take registers throughout.
    auto load_keys = [&](int i) {
        if (i < tile.count)
            load_tile<VECTOR, THREADS>(memory.key(i), tile.sequence.keys.rows<T>(p.k, group), tile.key(i),
                                       tile.sequence.keys.length - tile.key(i), shape.key_size, opaque(thread));
        copy_async_commit();
    };
    auto load_values = [&](int i) {
        if (i < tile.count)
            load_tile<VECTOR, THREADS>(memory.value(i), tile.sequence.keys.rows<T>(p.v, group), tile.key(i),
                                       tile.sequence.keys.length - tile.key(i), shape.value_size, opaque(thread));
        copy_async_commit();
    };
    load_tile<VECTOR, THREADS>(memory.query(), tile.sequence.queries.rows<T>(p.q, tile.head), tile.block.first,
                               tile.block.end - tile.block.first, shape.key_size, opaque(thread));
    load_keys(0);
    load_values(0);

    Range open = tile.sequence.seen_by_all(shape, tile.block);
    AttentionRows<OPTIONS> rows(shape, tile.head, tile.block.first + warp * 16 + lane / 4, lane);
    float out[V / 8][4] = {};
    for (int i = 0; i < tile.count; i++) {
        copy_async_wait<1>();
        __syncthreads();
        load_keys(i + 1);
        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            u32 a[4], b[4];
            load_left(a, memory.query(), warp * 16, k, lane);
#pragma unroll
            for (int j = 0; j < KEYS; j += 16) {
                load_right_transposed(b, memory.key(i), j, k, lane);
                mma_16x16<T>(scores[j / 8], scores[j / 8 + 1], a, b);
            }
        }
        if (rows.weigh(scores, shape, tile, open, tile.key(i))) rows.multiply(out);
        u32 weights[KEYS / 16][4];
        pack_weights<T>(weights, scores);

        copy_async_wait<1>();
        __syncthreads();
        load_values(i + 1);
#pragma unroll
        for (int j = 0; j < KEYS; j += 16)
#pragma unroll
            for (int v = 0; v < V; v += 16) {
                u32 b[4];
                load_right(b, memory.value(i), j, v, lane);
                mma_16x16<T>(out[v / 8], out[v / 8 + 1], weights[j / 16], b);
            }
    }
    rows.store<T, (VECTOR < 8 ? VECTOR : 8)>(out, p.call, tile);
}
