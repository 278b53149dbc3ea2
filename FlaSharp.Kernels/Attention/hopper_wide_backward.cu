// As hopper_backward.cu, for heads of up to 256: there are no registers for a block's gradients of 128 such keys, so two groups
// of four warps share 64 of them. Each computes the weights for half of the queries and, from those of both, half of each
// gradient's columns.
#include "fla/attention_backward.cuh"
#include "fla/bulk.cuh"
#include "fla/tma.cuh"
#include "fla/turn.cuh"
#include "fla/warp_tile.cuh"
#include "fla/wgmma.cuh"

using namespace fla;

struct AttentionHopperBackward {
    TensorMap q, k, v, grad_output; // boxes of a tile's rows
    AttentionBackward call;
};

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, QUERIES = 64, KEYS = 64, HALF = QUERIES / 2;
constexpr int GROUP_THREADS = 128, CONSUMER_THREADS = 2 * GROUP_THREADS, THREADS = GROUP_THREADS + CONSUMER_THREADS;
constexpr int SHARE = 65536 / THREADS / 8 * 8; // of a thread in the registers
constexpr int SUM_COLUMNS = 64, ROUNDS = K / 2 / SUM_COLUMNS; // in which a group's part of dQ is added

typedef BackwardWork<KEYS, QUERIES> Work;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;
typedef SharedTile<T, QUERIES, K> QueryTile;
typedef SharedTile<T, QUERIES, V> OutputTile;
typedef SharedTile<T, KEYS, QUERIES> PairTile;
typedef FloatTile<QUERIES, SUM_COLUMNS> SumTile;

// In shared memory: two tiles of queries, but one of outputs' gradients, which the first product after the weights is done with.
constexpr int ROWS_BYTES = QUERIES * 4;
constexpr int VALUES_AT = KeyTile::BYTES, QUERIES_AT = VALUES_AT + ValueTile::BYTES,
              OUTPUTS_AT = QUERIES_AT + 2 * QueryTile::BYTES, WEIGHTS_AT = OUTPUTS_AT + OutputTile::BYTES,
              PAIRS_AT = WEIGHTS_AT + PairTile::BYTES, SUMS_AT = PAIRS_AT + PairTile::BYTES,
              ROWS_AT = SUMS_AT + 2 * SumTile::BYTES, BARRIERS_AT = ROWS_AT + 4 * ROWS_BYTES, BARRIERS = 11;
static_assert(BARRIERS_AT + BARRIERS * Mbarrier::BYTES == SHARED);

__device__ __forceinline__ KeyTile key_tile() { return KeyTile(shared_memory()); }
__device__ __forceinline__ ValueTile value_tile() { return ValueTile(shared_memory() + VALUES_AT); }
__device__ __forceinline__ QueryTile query_tile(int n) {
    return QueryTile(shared_memory() + QUERIES_AT + n % 2 * QueryTile::BYTES);
}
__device__ __forceinline__ OutputTile output_tile() { return OutputTile(shared_memory() + OUTPUTS_AT); }
__device__ __forceinline__ PairTile weight_tile() { return PairTile(shared_memory() + WEIGHTS_AT); }
__device__ __forceinline__ PairTile pair_tile() { return PairTile(shared_memory() + PAIRS_AT); }
__device__ __forceinline__ SumTile sum_tile(int group) { return SumTile(shared_memory() + SUMS_AT + group * SumTile::BYTES); }
__device__ __forceinline__ u32 logs(int n) { return shared_memory() + ROWS_AT + n % 2 * (2 * ROWS_BYTES); }
__device__ __forceinline__ u32 deltas(int n) { return logs(n) + ROWS_BYTES; }
__device__ __forceinline__ Mbarrier barrier(int i) { return {shared_memory() + BARRIERS_AT + i * Mbarrier::BYTES}; }
__device__ __forceinline__ Mbarrier loaded(int n) { return barrier(n % 2); } // queries; phase n / 2
__device__ __forceinline__ Mbarrier used(int n) { return barrier(2 + n % 2); } // and pairs with them
__device__ __forceinline__ Mbarrier output_loaded() { return barrier(4); }     // phase n, as the next ones
__device__ __forceinline__ Mbarrier output_used() { return barrier(5); }
__device__ __forceinline__ Mbarrier paired() { return barrier(6); }
__device__ __forceinline__ Mbarrier summed(int group) { return barrier(7 + group); } // a phase for each round
__device__ __forceinline__ Mbarrier added(int group) { return barrier(9 + group); }

__device__ __forceinline__ void load(const AttentionHopperBackward& p, const Work& work) {
    work.each([&](int n, int head, int tile) {
        const Sequence &queries = work.sequence.queries, &keys = work.sequence.keys;
        int first = (int)queries.start + tile * QUERIES, first_key = (int)keys.start + work.keys.first;
        i64 stored = work.stored(head, tile);
        if (n > 1) used(n).wait(n / 2 - 1);
        loaded(n).arrive_expecting(QueryTile::BYTES + 2 * ROWS_BYTES + (n == 0 ? KeyTile::BYTES : 0));
        if (n == 0) copy_tile(key_tile(), p.k, work.kv_head, first_key, (int)keys.batch, loaded(n));
        copy_tile(query_tile(n), p.q, head, first, (int)queries.batch, loaded(n));
        load_bulk(logs(n), p.call.logs + stored, ROWS_BYTES, loaded(n));
        load_bulk(deltas(n), p.call.deltas + stored, ROWS_BYTES, loaded(n));
        if (n > 0) output_used().wait(n - 1);
        output_loaded().arrive_expecting(OutputTile::BYTES + (n == 0 ? ValueTile::BYTES : 0));
        if (n == 0) copy_tile(value_tile(), p.v, work.kv_head, first_key, (int)keys.batch, output_loaded());
        copy_tile(output_tile(), p.grad_output, head, first, (int)queries.batch, output_loaded());
    });
}

__device__ __forceinline__ void add(const AttentionBackward& p, const Work& work) {
    work.each([&](int n, int head, int tile) {
        i64 stored = work.stored(head, tile);
        int number = work.turn(tile);
        Turn turn{p.turns + stored / QUERIES};
        turn.wait(number);
        for (int round = 0; round < ROUNDS; round++)
            for (int group = 0; group < 2; group++) {
                float* sums = p.sums + stored * K + (group * ROUNDS + round) * (QUERIES * SUM_COLUMNS);
                summed(group).wait(n * ROUNDS + round);
                fence_bulk();
                if (number == 0)
                    store_bulk(sums, sum_tile(group).base, SumTile::BYTES);
                else
                    add_bulk(sums, sum_tile(group).base, SumTile::BYTES);
                wait_bulk_read();
                added(group).arrive();
            }
        wait_bulk();
        fence_bulk();
        turn.end(number);
    });
}

__device__ __forceinline__ void consume(const Work& work) {
    const AttentionShape& shape = work.p.shape;
    int group = threadIdx.x / GROUP_THREADS - 1, lane = threadIdx.x % 32, row = threadIdx.x % GROUP_THREADS / 32 * 16;
    int steps = work.steps();
    float dk[K / 16][4] = {}, dv[V / 16][4] = {}, s[HALF / 8][4], dp[HALF / 8][4], factor = shape.scale * LOG2E;

    auto start_scores = [&](int n) {
        begin_products(s);
#pragma unroll
        for (int k = 0; k < K; k += 16)
            product<0, 0, T>(s, operand(key_tile(), 0, k), operand(query_tile(n), group * HALF, k), k > 0);
        commit_products();
    };
    auto start_gradients = [&] {
        begin_products(dp);
#pragma unroll
        for (int k = 0; k < V; k += 16)
            product<0, 0, T>(dp, operand(value_tile(), 0, k), operand(output_tile(), group * HALF, k), k > 0);
        commit_products();
    };
    if (steps > 0) {
        loaded(0).wait(0);
        start_scores(0);
        output_loaded().wait(0);
        start_gradients();
        wait_products<0>(s, dp);
    }
    work.each([&](int n, int head, int tile) {
        int place = group * HALF + lane % 4 * 2, query = tile * QUERIES + place, key = work.keys.first + row + lane / 4;
        int end = min(tile * QUERIES + QUERIES, work.sequence.queries.length);
        Range all = work.sequence.seen_by_all(shape, {tile * QUERIES, end});
        bool masked = work.keys.first < all.first || work.keys.first + KEYS > all.end || end < tile * QUERIES + QUERIES;
        if (n > 0) used(n - 1).wait((n - 1) / 2);
#pragma unroll
        for (int j = 0; j < HALF / 8; j++) {
            float2 log = shared_load<float2>(logs(n) + (place + j * 8) * 4);
            float2 delta = shared_load<float2>(deltas(n) + (place + j * 8) * 4);
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int own = query + j * 8 + e % 2;
                bool seen = !masked || (own < end && work.sequence.sees(shape, own, key + e / 2 * 8));
                s[j][e] = seen ? pow2(s[j][e] * factor - (e % 2 ? log.y : log.x)) : 0.f;
                dp[j][e] = seen ? s[j][e] * (dp[j][e] - (e % 2 ? delta.y : delta.x)) : 0.f;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int r = row + half * 8 + lane / 4;
                PairTile::store(weight_tile().at(r, place + j * 8), s[j][2 * half], s[j][2 * half + 1]);
                PairTile::store(pair_tile().at(r, place + j * 8), dp[j][2 * half], dp[j][2 * half + 1]);
            }
        }
        int thread = threadIdx.x - GROUP_THREADS;
        if (n == 0 && work.mixes_keys()) clear_rows<CONSUMER_THREADS>(key_tile(), work.keys.end - work.keys.first, thread);
        if (work.mixes_queries(tile)) {
            clear_rows<CONSUMER_THREADS>(query_tile(n), end - tile * QUERIES, thread);
            clear_rows<CONSUMER_THREADS>(output_tile(), end - tile * QUERIES, thread);
        }
        fence_for_products();
        paired().arrive();
        paired().wait(n);

        float dq[K / 16][4];
        begin_products(dv);
#pragma unroll
        for (int i = 0; i < QUERIES; i += 16)
            product<0, 1, T>(dv, operand(weight_tile(), 0, i), operand_transposed(output_tile(), i, group * (V / 2)));
        commit_products();
        begin_products(dk);
#pragma unroll
        for (int i = 0; i < QUERIES; i += 16)
            product<0, 1, T>(dk, operand(pair_tile(), 0, i), operand_transposed(query_tile(n), i, group * (K / 2)));
        commit_products();
        begin_products(dq);
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
            product<1, 1, T>(dq, operand_transposed(pair_tile(), k, 0), operand_transposed(key_tile(), k, group * (K / 2)),
                             k > 0);
        commit_products();
        wait_products<2>(dv);
        output_used().arrive();

        // After the last step the next scores are of no use.
        if (n + 1 < steps) loaded(n + 1).wait((n + 1) / 2);
        start_scores(n + 1);
        wait_products<1>(dk, dq);
        used(n).arrive();
#pragma unroll
        for (int round = 0; round < ROUNDS; round++) {
            if (n * ROUNDS + round > 0) added(group).wait(n * ROUNDS + round - 1);
#pragma unroll
            for (int j = 0; j < SUM_COLUMNS / 8; j++)
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    float(&sums)[4] = dq[round * (SUM_COLUMNS / 8) + j];
                    shared_store(sum_tile(group).at(row + half * 8 + lane / 4, j * 8 + lane % 4 * 2),
                                 make_float2(sums[2 * half], sums[2 * half + 1]));
                }
            fence_for_products();
            summed(group).arrive();
            if (round == 0) {
                if (n + 1 < steps) output_loaded().wait(n + 1);
                start_gradients();
            }
        }
        wait_products<0>(s, dp);
    });

    constexpr int CONSUMING = 1;
    barrier_wait(CONSUMING, CONSUMER_THREADS); // both groups are done with the keys and values
    int rows = work.keys.end - work.keys.first;
    auto target = [&](const TensorView& view) { return work.sequence.keys.rows<T>(view, work.kv_head).from(work.keys.first); };
    store_rows(value_tile(), row, group * (V / 2), dv, 1.f, target(work.p.grad_v), rows, shape.value_size, lane);
    store_rows(key_tile(), row, group * (K / 2), dk, shape.scale, target(work.p.grad_k), rows, shape.key_size, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_hopper_backward(const __grid_constant__ AttentionHopperBackward p) {
    Work work(p.call);
    if (work.keys.first >= work.keys.end) return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            loaded(i).init(1);
            used(i).init(CONSUMER_THREADS);
            summed(i).init(GROUP_THREADS);
            added(i).init(1);
        }
        output_loaded().init(1);
        output_used().init(CONSUMER_THREADS);
        paired().init(CONSUMER_THREADS);
        fence_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP_THREADS) {
        set_registers<24, SHARE>();
        if (threadIdx.x == 0) load(p, work);
        if (threadIdx.x == 32) add(p.call, work);
    } else {
        set_registers<240, SHARE>();
        consume(work);
    }
}
