// The gradients of softmax attention's keys and values, and sums of the queries', for any GPU, size and alignment:
// hopper_backward.cu tells how. All warps of a block share each product, so weights and their gradients go through shared memory.
#include "fla/attention_backward.cuh"
#include "fla/turn.cuh"
#include "fla/warp_tile.cuh"

using namespace fla;

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, KEYS = KEYS_TILE, QUERIES = QUERY_TILE, THREADS = 32 * BLOCK_WARPS;

typedef BackwardWork<KEYS, QUERIES> Work;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;
typedef SharedTile<T, QUERIES, K> QueryTile;
typedef SharedTile<T, QUERIES, V> OutputTile;
typedef SharedTile<T, KEYS, QUERIES> PairTile;
typedef FloatTile<QUERIES, K> Sums;
template <int ROWS, int COLS> using Products = WarpTile<ROWS, COLS, BLOCK_WARPS, u32[4], T>;

// One tile of queries on its way.
struct Stage {
    static constexpr int ROWS = QueryTile::BYTES + OutputTile::BYTES, BYTES = ROWS + 2 * QUERIES * 4;
    u32 memory;

    __device__ __forceinline__ QueryTile query() const { return QueryTile(memory); }
    __device__ __forceinline__ OutputTile output() const { return OutputTile(memory + QueryTile::BYTES); }
    __device__ __forceinline__ u32 log(int query) const { return memory + ROWS + query * 4; }
    __device__ __forceinline__ u32 delta(int query) const { return log(QUERIES + query); }
};
constexpr int VALUES_AT = KeyTile::BYTES, WEIGHTS_AT = VALUES_AT + ValueTile::BYTES, PAIRS_AT = WEIGHTS_AT + PairTile::BYTES,
              STAGES_AT = PAIRS_AT + PairTile::BYTES;
static_assert(STAGES_AT + STAGES * Stage::BYTES == SHARED);

// From products and the gradients of weights to weights after dropout and the gradients of scores.
__device__ __forceinline__ void weigh(Products<KEYS, QUERIES>& scores, Products<KEYS, QUERIES>& gradients,
                                      const AttentionBackward& p, const AttentionSequence& sequence, int head, Range keys,
                                      int first, const Stage& stage) {
    Range all = sequence.seen_by_all(p.shape, {first, min(first + QUERIES, sequence.queries.length)});
    bool masked = keys.first < all.first || keys.first + KEYS > all.end;
    AttentionScore score(p.shape, head);
    AttentionDropout dropout(p.shape, sequence.queries.index, head);
    int lane = opaque(threadIdx.x) % 32;
#pragma unroll
    for (int m = 0; m < scores.ROW_TILES; m++)
#pragma unroll
        for (int i = 0; i < scores.COL_TILES; i++) {
            int place = scores.col + i * 16 + lane % 4 * 2, query = first + place;
            int key = keys.first + scores.row + m * 16 + lane / 4;
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float kept[4] = {1.f, 1.f, 1.f, 1.f};
#if OPTIONS
                if (dropout.threshold) dropout.draw(kept, query + e, key);
#endif
#pragma unroll
                for (int f = 0; f < 4; f++) {
                    int later = f / 2 * 8 + e, higher = f % 2 * 8; // than query and key
                    float &s = scores.sum[m][2 * i + f / 2][f % 2 * 2 + e], &d = gradients.sum[m][2 * i + f / 2][f % 2 * 2 + e];
                    float log = shared_load<float>(stage.log(place + later));
                    float delta = shared_load<float>(stage.delta(place + later));
#if OPTIONS
                    float capped = score.capped(s), derivative = score.derivative(capped);
                    float exponent = capped + score.bias(query + later + sequence.ahead - key - higher);
#else
                    float exponent = s * score.factor, derivative = 1.f;
#endif
                    bool seen = !masked || sequence.sees(p.shape, query + later, key + higher);
                    float weight = seen ? pow2(exponent - log) : 0.f;
                    s = weight * kept[f];
                    d = weight * (d * kept[f] - delta) * derivative;
                }
            }
        }
}

template <int COLS>
__device__ __forceinline__ void store(Products<KEYS, COLS>& sums, float factor, const Rows<T>& target, int rows, int size) {
    sums.visit([&](int row, int col, float x, float y) {
        if (row < rows && col < size) store_pair<VECTOR>(target[row] + col, size - col, x * factor, y * factor);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
attention_portable_backward(const __grid_constant__ AttentionBackward p) {
    follow_stream();
    Work work(p);
    const AttentionSequence& sequence = work.sequence;
    Range keys = work.keys;
    if (keys.first >= keys.end) return;
    int steps = work.steps(), count = steps / p.shape.group, kv_head = work.kv_head;
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;

    KeyTile key_tile(shared_memory());
    ValueTile value_tile(shared_memory() + VALUES_AT);
    PairTile weights(shared_memory() + WEIGHTS_AT), pairs(shared_memory() + PAIRS_AT);
    auto stage = [](int n) { return Stage{shared_memory() + STAGES_AT + n % STAGES * Stage::BYTES}; };
    auto head_of = [&](int n) { return kv_head * p.shape.group + n / count; };
    auto tile_of = [&](int n) { return work.tiles.first + n % count; };
    auto load = [&](int n) {
        if (n < steps) {
            int thread = opaque(threadIdx.x), head = head_of(n), first = tile_of(n) * QUERIES;
            int rows = sequence.queries.length - first;
            load_tile<VECTOR, THREADS>(stage(n).query(), sequence.queries.rows<T>(p.q, head), first, rows, p.shape.key_size,
                                       thread);
            load_tile<VECTOR, THREADS>(stage(n).output(), sequence.queries.rows<T>(p.grad_output, head), first, rows,
                                       p.shape.value_size, thread);
            i64 stored = stored_query(p.shape, sequence.queries, head, first);
            if (thread < QUERIES / 2) {
                bool is_log = thread < QUERIES / 4;
                int place = thread % (QUERIES / 4) * 4;
                copy_async<16>(is_log ? stage(n).log(place) : stage(n).delta(place),
                               (is_log ? p.logs : p.deltas) + stored + place, true);
            }
        }
        copy_async_commit();
    };

    load_tile<VECTOR, THREADS>(key_tile, sequence.keys.rows<T>(p.k, kv_head), keys.first, keys.end - keys.first, p.shape.key_size,
                               threadIdx.x);
    load_tile<VECTOR, THREADS>(value_tile, sequence.keys.rows<T>(p.v, kv_head), keys.first, keys.end - keys.first,
                               p.shape.value_size, threadIdx.x);
    if (STAGES > 1) load(0);
    Products<KEYS, K> dk(warp, lane);
    Products<KEYS, V> dv(warp, lane);
    for (int n = 0; n < steps; n++) {
        load(STAGES > 1 ? n + 1 : n);
        copy_async_wait<STAGES - 1>();
        __syncthreads();
        int head = head_of(n), tile = tile_of(n);
        QueryTile query_tile = stage(n).query();
        OutputTile output_tile = stage(n).output();
        {
            Products<KEYS, QUERIES> scores(warp, lane), gradients(warp, lane);
            scores.template add<K>([&](u32(&a)[4], int row, int k) { load_left(a, key_tile, row, k, lane); },
                                   [&](u32(&b)[4], int k, int col) { load_right_transposed(b, query_tile, col, k, lane); });
            gradients.template add<V>([&](u32(&a)[4], int row, int k) { load_left(a, value_tile, row, k, lane); },
                                      [&](u32(&b)[4], int k, int col) { load_right_transposed(b, output_tile, col, k, lane); });
            weigh(scores, gradients, p, sequence, head, keys, tile * QUERIES, stage(n));
            scores.visit([&](int row, int col, float x, float y) { PairTile::store(weights.at(row, col), x, y); });
            gradients.visit([&](int row, int col, float x, float y) { PairTile::store(pairs.at(row, col), x, y); });
        }
        __syncthreads();
        dv.template add<QUERIES>([&](u32(&a)[4], int row, int k) { load_left(a, weights, row, k, lane); },
                                 [&](u32(&b)[4], int k, int col) { load_right(b, output_tile, k, col, lane); });
        dk.template add<QUERIES>([&](u32(&a)[4], int row, int k) { load_left(a, pairs, row, k, lane); },
                                 [&](u32(&b)[4], int k, int col) { load_right(b, query_tile, k, col, lane); });
        Products<QUERIES, K> dq(warp, lane);
        dq.template add<KEYS>([&](u32(&a)[4], int row, int k) { load_left_transposed(a, pairs, k, row, lane); },
                              [&](u32(&b)[4], int k, int col) { load_right(b, key_tile, k, col, lane); });

        i64 stored = work.stored(head, tile);
        int number = work.turn(tile);
        Turn turn{p.turns + stored / QUERIES};
        if (threadIdx.x == 0) turn.wait(number);
        __syncthreads();
        float* sums = p.sums + stored * K;
        dq.visit([&](int row, int col, float x, float y) {
            float2* there = reinterpret_cast<float2*>(sums + Sums(0).at(row, col) / 4);
            float2 before = number == 0 ? make_float2(0.f, 0.f) : __ldcg(there);
            __stcg(there, make_float2(before.x + x, before.y + y));
        });
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) turn.end(number);
    }
    copy_async_wait<0>();
    auto target = [&](const TensorView& view) { return sequence.keys.rows<T>(view, kv_head).from(keys.first); };
    store(dv, 1.f, target(p.grad_v), keys.end - keys.first, p.shape.value_size);
    store(dk, p.shape.scale, target(p.grad_k), keys.end - keys.first, p.shape.key_size);
}
