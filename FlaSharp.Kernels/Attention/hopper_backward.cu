// The gradients of softmax attention's keys and values, and sums of the queries', by Hopper's products.
//
// A block has a tile of keys and visits the queries that see some of them. With everything transposed, keys are rows:
//   P = 2^(scores - log),  dP = V dO^T,  dS = P (dP - delta):     dV += P dO,   dK += dS Q,   dQ = dS^T K
// so P and dS go from the sums of one product to the registers of the next. Two groups of four warps compute, each for half of
// the keys, and share dQ. They do so a step later, when both surely have dS, so that one may be in products while the other one
// is between them.
#include "fla/hopper_backward.cuh"

using namespace fla;

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, QUERIES = QUERY_TILE, KEYS = 128;
constexpr bool BY_ROWS = QUERIES == 128;     // whether the groups share the rows of dQ, or its columns
constexpr int COLUMNS = BY_ROWS ? K : K / 2; // of dQ, a group's

typedef BackwardWork<KEYS, QUERIES> Work;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;
typedef SharedTile<T, QUERIES, K> QueryTile;
typedef SharedTile<T, QUERIES, V> OutputTile;
typedef SharedTile<T, KEYS, QUERIES> PairTile;
typedef QuerySums<COLUMNS, 1, SUM_SLOTS> Sums;

// In shared memory; phases of barriers count steps, those of a stage every STAGES of them.
constexpr int ROWS_BYTES = QUERIES * 4, STAGE_BYTES = QueryTile::BYTES + OutputTile::BYTES;
constexpr int VALUES_AT = KeyTile::BYTES, STAGES_AT = VALUES_AT + ValueTile::BYTES, PAIRS_AT = STAGES_AT + STAGES * STAGE_BYTES,
              SUMS_AT = PAIRS_AT + 3 * PairTile::BYTES, ROWS_AT = SUMS_AT + Sums::BYTES,
              BARRIERS_AT = ROWS_AT + STAGES * 2 * ROWS_BYTES, BARRIERS = 2 * STAGES + 1;
static_assert(BARRIERS_AT + (BARRIERS + Sums::BARRIERS) * Mbarrier::BYTES == SHARED);

__device__ __forceinline__ KeyTile key_tile() { return KeyTile(shared_memory()); }
__device__ __forceinline__ ValueTile value_tile() { return ValueTile(shared_memory() + VALUES_AT); }
__device__ __forceinline__ u32 stage(int n) { return shared_memory() + STAGES_AT + n % STAGES * STAGE_BYTES; }
__device__ __forceinline__ QueryTile query_tile(int n) { return QueryTile(stage(n)); }
__device__ __forceinline__ OutputTile output_tile(int n) { return OutputTile(stage(n) + QueryTile::BYTES); }
__device__ __forceinline__ u32 logs(int n) { return shared_memory() + ROWS_AT + n % STAGES * (2 * ROWS_BYTES); }
__device__ __forceinline__ u32 deltas(int n) { return logs(n) + ROWS_BYTES; }
// Three of them: one is written while a group that is behind reads the one before the last.
__device__ __forceinline__ PairTile pair_tile(int n) { return PairTile(shared_memory() + PAIRS_AT + n % 3 * PairTile::BYTES); }
__device__ __forceinline__ Mbarrier barrier(int i) { return {shared_memory() + BARRIERS_AT + i * Mbarrier::BYTES}; }
__device__ __forceinline__ Mbarrier loaded(int n) { return barrier(n % STAGES); }
__device__ __forceinline__ Mbarrier used(int n) { return barrier(STAGES + n % STAGES); }
__device__ __forceinline__ Mbarrier paired() { return barrier(2 * STAGES); }
__device__ __forceinline__ Sums sums() { return {shared_memory() + SUMS_AT, barrier(BARRIERS).address}; }

__device__ __forceinline__ void load(const AttentionHopperBackward& p, const Work& work) {
    work.each([&](int n, int head, int tile) {
        if (n >= STAGES) used(n).wait(n / STAGES - 1);
        loaded(n).arrive_expecting(STAGE_BYTES + 2 * ROWS_BYTES + (n == 0 ? KeyTile::BYTES + ValueTile::BYTES : 0));
        const Sequence &queries = work.sequence.queries, &keys = work.sequence.keys;
        int first = (int)queries.start + tile * QUERIES, first_key = (int)keys.start + work.keys.first;
        if (n == 0) copy_tile(key_tile(), p.k, work.kv_head, first_key, (int)keys.batch, loaded(n));
        copy_tile(query_tile(n), p.q, head, first, (int)queries.batch, loaded(n));
        if (n == 0) copy_tile(value_tile(), p.v, work.kv_head, first_key, (int)keys.batch, loaded(n));
        copy_tile(output_tile(n), p.grad_output, head, first, (int)queries.batch, loaded(n));
        i64 stored = work.stored(head, tile);
        load_bulk(logs(n), p.call.logs + stored, ROWS_BYTES, loaded(n));
        load_bulk(deltas(n), p.call.deltas + stored, ROWS_BYTES, loaded(n));
    });
}

template <int BLOCKS> __device__ __forceinline__ void pack(u32 (&left)[BLOCKS / 2][4], const float (&x)[BLOCKS][4]) {
#pragma unroll
    for (int j = 0; j < BLOCKS; j++)
#pragma unroll
        for (int half = 0; half < 2; half++) left[j / 2][j % 2 * 2 + half] = Pair<T>::pack(x[j][2 * half], x[j][2 * half + 1]);
}

__device__ __forceinline__ void consume(const Work& work) {
    const AttentionShape& shape = work.p.shape;
    int group = __shfl_sync(~0u, threadIdx.x / GROUP_THREADS - 1, 0), lane = threadIdx.x % 32;
    int row = (threadIdx.x - GROUP_THREADS) / 32 * 16; // of keys, a warp's first
    int steps = work.steps();
    float dk[K / 8][4] = {}, dv[V / 8][4] = {}, s[QUERIES / 8][4];

    constexpr int CONSUMING = 1;
    // The rows of two tiles from `first` on.
    auto clear = [&](const auto& x, const auto& y, int first) {
        clear_rows<CONSUMER_THREADS>(x, first, threadIdx.x - GROUP_THREADS);
        clear_rows<CONSUMER_THREADS>(y, first, threadIdx.x - GROUP_THREADS);
        fence_for_products();
        barrier_wait(CONSUMING, CONSUMER_THREADS);
    };
    // Those of step `n` that are not of the sequence.
    auto clear_queries = [&](int n, int tile) {
        if (work.mixes_queries(tile)) clear(query_tile(n), output_tile(n), work.sequence.queries.length - tile * QUERIES);
    };
    auto start_scores = [&](int n) {
        begin_products(s);
#pragma unroll
        for (int k = 0; k < K; k += 16)
            product<0, 0, T>(s, operand(key_tile(), group * 64, k), operand(query_tile(n), 0, k), k > 0);
        commit_products();
    };
    // dQ of step `n`, from what both groups left.
    auto start_queries = [&](float(&dq)[COLUMNS / 8][4], int n) {
        begin_products(dq);
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
            product<1, 1, T>(dq, operand_transposed(pair_tile(n), k, BY_ROWS ? group * 64 : 0),
                             operand_transposed(key_tile(), k, BY_ROWS ? 0 : group * COLUMNS), k > 0);
        commit_products();
    };
    auto store_queries = [&](float(&dq)[COLUMNS / 8][4], int n) { sums().store(group, n, 0, dq, row % 64, lane); };
    if (steps > 0) {
        loaded(0).wait(0);
        if (work.mixes_keys()) clear(key_tile(), value_tile(), work.keys.end - work.keys.first);
        clear_queries(0, work.first());
        start_scores(0);
        wait_products<0>(s);
    }
    work.each([&](int n, int head, int tile) {
        float dp[QUERIES / 8][4], dq[COLUMNS / 8][4];
        auto start_gradients = [&] {
            begin_products(dp);
#pragma unroll
            for (int k = 0; k < V; k += 16)
                product<0, 0, T>(dp, operand(value_tile(), group * 64, k), operand(output_tile(n), 0, k), k > 0);
            commit_products();
        };
#if !OPTIONS // with options the weights leave no registers for these
        float2 rows[QUERIES / 8]; // logs, and then deltas: all are loaded before the first one is used
        auto load_rows = [&](u32 from) {
#pragma unroll
            for (int j = 0; j < QUERIES / 8; j++) rows[j] = shared_load<float2>(from + (j * 8 + lane % 4 * 2) * 4);
        };
        start_gradients();
#endif

        int query = tile * QUERIES + lane % 4 * 2, key = work.keys.first + row + lane / 4; // of the thread's first score
        hide(work, s, tile, query, key);
        u32 weights[QUERIES / 16][4];
#if OPTIONS
        AttentionScore score(shape, head);
        AttentionDropout dropout(shape, work.sequence.queries.index, head);
        u32 dropped[QUERIES / 64] = {}; // a digit for each score
        // From the product in place of j, e, whose log is given: the weight, and the score without what depends on distance.
        auto weight = [&](int j, int e, float log, float& capped) {
            capped = score.capped(s[j][e]);
            float bias = score.bias(query + j * 8 + e % 2 + work.sequence.ahead - key - e / 2 * 8);
            return s[j][e] == hidden() ? 0.f : pow2(capped + bias - log);
        };
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) {
            float kept[2][8];
            key = opaque(key);
#pragma unroll
            for (int e = 0; e < 2; e++) {
                float factors[4] = {1.f, 1.f, 1.f, 1.f};
                if (dropout.threshold) dropout.draw(factors, query + i * 16 + e, key);
#pragma unroll
                for (int f = 0; f < 4; f++) kept[f / 2][f % 2 * 2 + e] = factors[f];
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                float2 log = shared_load<float2>(logs(n) + (i * 16 + half * 8 + lane % 4 * 2) * 4);
                float used[4], capped;
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    used[e] = weight(i * 2 + half, e, e % 2 ? log.y : log.x, capped) * kept[half][e];
                    if (kept[half][e] == 0.f) dropped[i / 4] |= 1u << (i % 4 * 8 + half * 4 + e);
                }
                weights[i][half * 2] = Pair<T>::pack(used[0], used[1]);
                weights[i][half * 2 + 1] = Pair<T>::pack(used[2], used[3]);
            }
        }
#else
        load_rows(logs(n));
        float factor = shape.scale * LOG2E;
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
#pragma unroll
            for (int e = 0; e < 4; e++) s[j][e] = pow2(s[j][e] * factor - (e % 2 ? rows[j].y : rows[j].x));
        }
        pack(weights, s);
#endif

        if (OPTIONS) start_gradients();
        begin_products(dv);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) product<1, T>(dv, weights[i], operand_transposed(output_tile(n), i * 16, 0));
        commit_products();

#if OPTIONS
        wait_products<0>(dp, s); // the weights are computed again, which takes fewer registers than keeping them
#else
        wait_products<1>(dp);
        load_rows(deltas(n));
#endif
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
#if OPTIONS
            float2 delta = shared_load<float2>(deltas(n) + (j * 8 + lane % 4 * 2) * 4);
            float2 log = shared_load<float2>(logs(n) + (j * 8 + lane % 4 * 2) * 4);
            key = opaque(key);
#endif
#pragma unroll
            for (int e = 0; e < 4; e++) {
#if OPTIONS
                float capped, own = weight(j, e, e % 2 ? log.y : log.x, capped);
                bool is_dropped = dropped[j / 8] >> (j % 8 * 4 + e) & 1;
                float gradient = is_dropped ? 0.f : dp[j][e] * (dropout.threshold ? dropout.kept : 1.f);
                dp[j][e] = own * (gradient - (e % 2 ? delta.y : delta.x)) * score.derivative(capped);
#else
                dp[j][e] = s[j][e] * (dp[j][e] - (e % 2 ? rows[j].y : rows[j].x));
#endif
            }
        }
        u32 gradients[QUERIES / 16][4];
        pack(gradients, dp);
        if (n > 0) paired().wait(n - 1);
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                shared_store(pair_tile(n).at(row + half * 8 + lane / 4, j * 8 + lane % 4 * 2),
                             gradients[j / 2][j % 2 * 2 + half]);
        fence_for_products();
        paired().arrive();

        begin_products(dk);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) product<1, T>(dk, gradients[i], operand_transposed(query_tile(n), i * 16, 0));
        commit_products();
        start_queries(dq, n + 2); // of step n - 1; in the first step of no use, as the next scores in the last one

        wait_products<1>(dv, dk);
        used(n).arrive();
        if (n + 1 < steps) {
            loaded(n + 1).wait((n + 1) / STAGES);
            clear_queries(n + 1, work.next(tile));
        }
        start_scores(n + 1);
        wait_products<1>(dq);
        if (n > 0) store_queries(dq, n - 1);
        wait_products<0>(s);
    });
    if (steps > 0) {
        float dq[COLUMNS / 8][4];
        paired().wait(steps - 1);
        start_queries(dq, steps - 1);
        wait_products<0>(dq);
        store_queries(dq, steps - 1);
    }

    barrier_wait(CONSUMING, CONSUMER_THREADS); // both groups are done with the keys
    int rows = work.keys.end - work.keys.first;
    auto target = [&](const TensorView& view) { return work.sequence.keys.rows<T>(view, work.kv_head).from(work.keys.first); };
    store_rows(value_tile(), row, 0, dv, 1.f, target(work.p.grad_v), rows, shape.value_size, lane);
    store_rows(key_tile(), row, 0, dk, shape.scale, target(work.p.grad_k), rows, shape.key_size, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_hopper_backward(const __grid_constant__ AttentionHopperBackward p) {
    follow_stream();
    Work work(p.call);
    if (work.keys.first >= work.keys.end) return;
    if (threadIdx.x == 0) {
        for (int n = 0; n < STAGES; n++) {
            loaded(n).init(1);
            used(n).init(CONSUMER_THREADS);
        }
        paired().init(CONSUMER_THREADS);
        sums().init();
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP_THREADS) {
        set_registers<24, SHARE>();
        if (threadIdx.x == 0) load(p, work);
        if (threadIdx.x == 32 || threadIdx.x == 64) sums().add(work, threadIdx.x / 32 - 1);
    } else {
        set_registers<240, SHARE>();
        consume(work);
    }
}
