// As hopper_backward.cu, for heads of up to 256: there are no registers for a block's gradients of 128 such keys. Two groups of
// four warps share 64 of them in another way: one computes the weights and dV, and hands the weights to the other one, which
// computes the weights' gradients and dK. Each does half of dQ's columns.
#include "fla/hopper_backward.cuh"

using namespace fla;

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, QUERIES = 64, KEYS = 64, PAIRS = 2;

typedef BackwardWork<KEYS, QUERIES> Work;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;
typedef SharedTile<T, QUERIES, K> QueryTile;
typedef SharedTile<T, QUERIES, V> OutputTile;
typedef SharedTile<T, KEYS, QUERIES> PairTile;
typedef QuerySums<64, K / 128, 1> Sums;
typedef u32 Weights[QUERIES / 16][4]; // of a thread, in pairs

// In shared memory: two tiles of queries, but one of outputs' gradients.
constexpr int ROWS_BYTES = QUERIES * 4, WEIGHTS_BYTES = GROUP_THREADS * sizeof(Weights);
constexpr int VALUES_AT = KeyTile::BYTES, QUERIES_AT = VALUES_AT + ValueTile::BYTES,
              OUTPUTS_AT = QUERIES_AT + 2 * QueryTile::BYTES, PAIRS_AT = OUTPUTS_AT + OutputTile::BYTES,
              WEIGHTS_AT = PAIRS_AT + PAIRS * PairTile::BYTES, SUMS_AT = WEIGHTS_AT + WEIGHTS_BYTES,
              ROWS_AT = SUMS_AT + Sums::BYTES, BARRIERS_AT = ROWS_AT + 3 * ROWS_BYTES,
              BARRIERS = 9 + 2 * PAIRS;
static_assert(BARRIERS_AT + (BARRIERS + Sums::BARRIERS) * Mbarrier::BYTES == SHARED);

__device__ __forceinline__ KeyTile key_tile() { return KeyTile(shared_memory()); }
__device__ __forceinline__ ValueTile value_tile() { return ValueTile(shared_memory() + VALUES_AT); }
__device__ __forceinline__ QueryTile query_tile(int n) {
    return QueryTile(shared_memory() + QUERIES_AT + n % 2 * QueryTile::BYTES);
}
__device__ __forceinline__ OutputTile output_tile() { return OutputTile(shared_memory() + OUTPUTS_AT); }
__device__ __forceinline__ PairTile pair_tile(int n) {
    return PairTile(shared_memory() + PAIRS_AT + n % PAIRS * PairTile::BYTES);
}
// A thread's weights, 16 bytes of all threads side by side.
__device__ __forceinline__ u32 weights_at(int i) {
    return shared_memory() + WEIGHTS_AT + (i * GROUP_THREADS + threadIdx.x % GROUP_THREADS) * 16;
}
__device__ __forceinline__ u32 logs(int n) { return shared_memory() + ROWS_AT + n % 2 * ROWS_BYTES; }
__device__ __forceinline__ u32 deltas() { return shared_memory() + ROWS_AT + 2 * ROWS_BYTES; }
__device__ __forceinline__ Mbarrier barrier(int i) { return {shared_memory() + BARRIERS_AT + i * Mbarrier::BYTES}; }
__device__ __forceinline__ Mbarrier loaded(int n) { return barrier(n % 2); } // queries and logs; phase n / 2
__device__ __forceinline__ Mbarrier used(int n) { return barrier(2 + n % 2); }
__device__ __forceinline__ Mbarrier output_loaded() { return barrier(4); } // and deltas; phase n, as the next ones
__device__ __forceinline__ Mbarrier output_used() { return barrier(5); }
__device__ __forceinline__ Mbarrier weighed() { return barrier(6); } // weights are in shared memory,
__device__ __forceinline__ Mbarrier taken() { return barrier(7); }   // and in the other group's registers
__device__ __forceinline__ Mbarrier paired(int n) { return barrier(8 + n % PAIRS); } // phase n / PAIRS
__device__ __forceinline__ Mbarrier multiplied(int n) { return barrier(8 + PAIRS + n % PAIRS); }
__device__ __forceinline__ Mbarrier done() { return barrier(8 + 2 * PAIRS); } // no group needs a tile any more
__device__ __forceinline__ Sums sums() { return {shared_memory() + SUMS_AT, barrier(BARRIERS).address}; }

__device__ __forceinline__ void load(const AttentionHopperBackward& p, const Work& work) {
    work.each([&](int n, int head, int tile) {
        const Sequence &queries = work.sequence.queries, &keys = work.sequence.keys;
        int first = (int)queries.start + tile * QUERIES, first_key = (int)keys.start + work.keys.first;
        i64 stored = work.stored(head, tile);
        if (n >= 2) used(n).wait(n / 2 - 1);
        loaded(n).arrive_expecting(QueryTile::BYTES + ROWS_BYTES + (n == 0 ? KeyTile::BYTES : 0));
        if (n == 0) copy_tile(key_tile(), p.k, work.kv_head, first_key, (int)keys.batch, loaded(n));
        copy_tile(query_tile(n), p.q, head, first, (int)queries.batch, loaded(n));
        load_bulk(logs(n), p.call.logs + stored, ROWS_BYTES, loaded(n));
        if (n > 0) output_used().wait(n - 1);
        output_loaded().arrive_expecting(OutputTile::BYTES + ROWS_BYTES + (n == 0 ? ValueTile::BYTES : 0));
        if (n == 0) copy_tile(value_tile(), p.v, work.kv_head, first_key, (int)keys.batch, output_loaded());
        copy_tile(output_tile(), p.grad_output, head, first, (int)queries.batch, output_loaded());
        load_bulk(deltas(), p.call.deltas + stored, ROWS_BYTES, output_loaded());
    });
}

// What a group does of dQ: half of its columns.
struct QueryPart {
    int group, row, lane;
    float dq[K / 16][4];

    __device__ __forceinline__ void start(int n) {
        begin_products(dq);
#pragma unroll
        for (int k = 0; k < KEYS; k += 16)
            product<1, 1, T>(dq, operand_transposed(pair_tile(n), k, 0), operand_transposed(key_tile(), k, group * (K / 2)),
                             k > 0);
        commit_products();
    }
    __device__ __forceinline__ void store(int n, int round) const { sums().store(group, n, round, dq, row, lane); }
};

// Makes the rows of a tile from `first` on 0, for a group's products.
template <class Tile> __device__ __forceinline__ void clear(const Tile& tile, int first, int group) {
    clear_rows<GROUP_THREADS>(tile, first, threadIdx.x % GROUP_THREADS);
    fence_for_products();
    barrier_wait(1 + group, GROUP_THREADS);
}

// The first group: weights, dV, and dQ of the step before.
__device__ __forceinline__ void weigh(const Work& work) {
    const AttentionShape& shape = work.p.shape;
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP_THREADS / 32 * 16, steps = work.steps();
    float dv[V / 8][4] = {}, s[QUERIES / 8][4], factor = shape.scale * LOG2E;
    QueryPart part{0, row, lane};

    auto start_scores = [&](int n) {
        begin_products(s);
#pragma unroll
        for (int k = 0; k < K; k += 16)
            product<0, 0, T>(s, operand(key_tile(), 0, k), operand(query_tile(n), 0, k), k > 0);
        commit_products();
    };
    auto await_queries = [&](int n, int tile) {
        loaded(n).wait(n / 2);
        if (work.mixes_queries(tile)) clear(query_tile(n), work.sequence.queries.length - tile * QUERIES, 0);
    };
    if (steps > 0) {
        await_queries(0, work.first());
        if (work.mixes_keys()) clear(key_tile(), work.keys.end - work.keys.first, 0);
        start_scores(0);
        wait_products<0>(s);
    }
    work.each([&](int n, int head, int tile) {
        int query = tile * QUERIES + lane % 4 * 2, key = work.keys.first + row + lane / 4; // of the thread's first score
        hide(work, s, tile, query, key);
        Weights weights;
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++) {
            float2 log = shared_load<float2>(logs(n) + (j * 8 + lane % 4 * 2) * 4);
#pragma unroll
            for (int half = 0; half < 2; half++)
                weights[j / 2][j % 2 * 2 + half] = Pair<T>::pack(pow2(s[j][2 * half] * factor - log.x),
                                                                 pow2(s[j][2 * half + 1] * factor - log.y));
        }
        if (n > 0) taken().wait(n - 1);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++)
            shared_store(weights_at(i), make_uint4(weights[i][0], weights[i][1], weights[i][2], weights[i][3]));
        weighed().arrive();

        if (n > 0) paired(n - 1).wait((n - 1) / PAIRS);
        part.start(n - 1 + PAIRS); // of step n - 1; in the first step of no use, as the next scores in the last one
        output_loaded().wait(n);
        if (work.mixes_queries(tile)) paired(n).wait(n / PAIRS); // the other group has cleared rows
        begin_products(dv);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) product<1, T>(dv, weights[i], operand_transposed(output_tile(), i * 16, 0));
        commit_products();
        wait_products<1>(part.dq);
        if (n > 0) {
            multiplied(n - 1).arrive();
#pragma unroll
            for (int round = 0; round < Sums::ROUNDS; round++) part.store(n - 1, round);
        }
        if (n + 1 < steps) await_queries(n + 1, work.next(tile));
        start_scores(n + 1);
        wait_products<1>(dv);
        output_used().arrive();
        wait_products<0>(s);
    });
    if (steps > 0) {
        paired(steps - 1).wait((steps - 1) / PAIRS);
        part.start(steps - 1);
        wait_products<0>(part.dq);
#pragma unroll
        for (int round = 0; round < Sums::ROUNDS; round++) part.store(steps - 1, round);
    }
    done().arrive();
    done().wait(0);
    store_rows(value_tile(), row, 0, dv, 1.f, work.sequence.keys.rows<T>(work.p.grad_v, work.kv_head).from(work.keys.first),
               work.keys.end - work.keys.first, shape.value_size, lane);
}

// The second group: the weights' gradients, dK and dQ.
__device__ __forceinline__ void differentiate(const Work& work) {
    const AttentionShape& shape = work.p.shape;
    int lane = threadIdx.x % 32, row = threadIdx.x % GROUP_THREADS / 32 * 16, steps = work.steps();
    float dk[K / 8][4] = {}, dp[QUERIES / 8][4];
    QueryPart part{1, row, lane};

    auto start_gradients = [&](int n) {
        begin_products(dp);
#pragma unroll
        for (int k = 0; k < V; k += 16)
            product<0, 0, T>(dp, operand(value_tile(), 0, k), operand(output_tile(), 0, k), k > 0);
        commit_products();
    };
    auto await_outputs = [&](int n, int tile) {
        output_loaded().wait(n);
        if (work.mixes_queries(tile)) clear(output_tile(), work.sequence.queries.length - tile * QUERIES, 1);
    };
    if (steps > 0) {
        await_outputs(0, work.first());
        if (work.mixes_keys()) clear(value_tile(), work.keys.end - work.keys.first, 1);
        start_gradients(0);
        wait_products<0>(dp);
    }
    work.each([&](int n, int head, int tile) {
        u32 gradients[QUERIES / 16][4];
        weighed().wait(n);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) {
            uint4 weights = shared_load<uint4>(weights_at(i));
            u32 pairs[4] = {weights.x, weights.y, weights.z, weights.w};
#pragma unroll
            for (int f = 0; f < 4; f++) {
                int j = i * 2 + f / 2, half = f % 2;
                float2 delta = shared_load<float2>(deltas() + (j * 8 + lane % 4 * 2) * 4);
                gradients[i][f] = Pair<T>::pack(Pair<T>::low(pairs[f]) * (dp[j][2 * half] - delta.x),
                                                Pair<T>::high(pairs[f]) * (dp[j][2 * half + 1] - delta.y));
            }
        }
        taken().arrive();
        output_used().arrive();
        if (n >= PAIRS) multiplied(n).wait(n / PAIRS - 1);
#pragma unroll
        for (int j = 0; j < QUERIES / 8; j++)
#pragma unroll
            for (int half = 0; half < 2; half++)
                shared_store(pair_tile(n).at(row + half * 8 + lane / 4, j * 8 + lane % 4 * 2),
                             gradients[j / 2][j % 2 * 2 + half]);
        fence_for_products();
        paired(n).arrive();

        begin_products(dk);
#pragma unroll
        for (int i = 0; i < QUERIES / 16; i++) product<1, T>(dk, gradients[i], operand_transposed(query_tile(n), i * 16, 0));
        commit_products();
        paired(n).wait(n / PAIRS);
        part.start(n);
        wait_products<1>(dk);
        used(n).arrive();
        wait_products<0>(part.dq);
        multiplied(n).arrive();
#pragma unroll
        for (int round = 0; round < Sums::ROUNDS; round++) {
            part.store(n, round);
            if (round > 0) continue;
            if (n + 1 < steps) await_outputs(n + 1, work.next(tile));
            start_gradients(n + 1); // when there are registers for it; after the last step of no use
        }
        wait_products<0>(dp);
    });
    done().arrive();
    done().wait(0);
    store_rows(key_tile(), row, 0, dk, shape.scale, work.sequence.keys.rows<T>(work.p.grad_k, work.kv_head).from(work.keys.first),
               work.keys.end - work.keys.first, shape.key_size, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
attention_hopper_backward(const __grid_constant__ AttentionHopperBackward p) {
    follow_stream();
    Work work(p.call);
    if (work.keys.first >= work.keys.end) return;
    if (threadIdx.x == 0) {
        for (int i = 0; i < 2; i++) {
            loaded(i).init(1);
            used(i).init(GROUP_THREADS);
        }
        weighed().init(GROUP_THREADS);
        taken().init(GROUP_THREADS);
        output_loaded().init(1);
        output_used().init(CONSUMER_THREADS);
        for (int i = 0; i < PAIRS; i++) {
            paired(i).init(GROUP_THREADS);
            multiplied(i).init(CONSUMER_THREADS);
        }
        done().init(CONSUMER_THREADS);
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
        if (threadIdx.x < 2 * GROUP_THREADS)
            weigh(work);
        else
            differentiate(work);
    }
}
