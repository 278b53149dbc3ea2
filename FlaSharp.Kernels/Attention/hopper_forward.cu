// Softmax attention, forward, on Hopper: a block works on the queries of one head, a group of four warps on 64 of them, and a warp
// of its own brings boxes of keys and values.
//
// As Dao et al. 2022 (arXiv:2205.14135), key tile after key tile, and Shah et al. 2024 (arXiv:2407.08608): while a group turns the
// scores of a tile into weights, its product of the last tile's weights and values runs, and then the products of the other groups.
// What is kept of a row is the sum of its weights, and their products with the values, by a power of two that follows its largest score.
#include "fla/attention.cuh"
#include "fla/quad.cuh"
#include "fla/tma.cuh"
#include "fla/wgmma.cuh"

using namespace fla;

struct AttentionForward {
    TensorMap q, k, v;
    AttentionShape shape;
    TensorView o;
    float* log_sum_exp; // natural, [B, H, Tq]; of packed sequences [1, H, N]; or null
    int time;           // Tq or N
    int blocks;         // of the longest sequence's queries
    int section;        // heads of sequences whose blocks follow one another: their keys and values fit into the L2 cache
    int tiles;          // blocks in all
};

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, KEYS = KEY_ROWS, ROWS = 64 * GROUPS;
constexpr int CONSUMERS = 128 * GROUPS, THREADS = CONSUMERS + 128; // registers change hands between groups of four warps
constexpr int REGISTERS = 65536 / THREADS / MIN_BLOCKS / 8 * 8 < 255 ? 65536 / THREADS / MIN_BLOCKS / 8 * 8 : 255;
constexpr float SLACK = 8; // how far a score may exceed the power of two that its row is kept by

typedef SharedTile<T, ROWS, K> QueryTile;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;

// Shared memory. Key and value tiles are counted through, n being the block's n-th one.
struct Memory {
    u32 base = shared_memory();

    __device__ __forceinline__ QueryTile query() const { return QueryTile(base); }
    __device__ __forceinline__ KeyTile key(int n) const { return KeyTile(base + QueryTile::BYTES + n % STAGES * KeyTile::BYTES); }
    __device__ __forceinline__ ValueTile value(int n) const {
        return ValueTile(base + QueryTile::BYTES + STAGES * KeyTile::BYTES + n % STAGES * ValueTile::BYTES);
    }
    __device__ __forceinline__ Mbarrier query_full() const { return barrier(0); }
    __device__ __forceinline__ Mbarrier query_empty() const { return barrier(1); }
    __device__ __forceinline__ Mbarrier key_full(int n) const { return barrier(2 + n % STAGES); }
    __device__ __forceinline__ Mbarrier key_empty(int n) const { return barrier(2 + STAGES + n % STAGES); }
    __device__ __forceinline__ Mbarrier value_full(int n) const { return barrier(2 + 2 * STAGES + n % STAGES); }
    __device__ __forceinline__ Mbarrier value_empty(int n) const { return barrier(2 + 3 * STAGES + n % STAGES); }

    __device__ __forceinline__ void make_barriers() const {
        query_full().init(1);
        query_empty().init(CONSUMERS / 32);
        for (int n = 0; n < STAGES; n++) {
            key_full(n).init(1), value_full(n).init(1);
            key_empty(n).init(CONSUMERS / 32), value_empty(n).init(CONSUMERS / 32);
        }
        fence_barriers();
    }

private:
    __device__ __forceinline__ Mbarrier barrier(int i) const {
        return {base + QueryTile::BYTES + STAGES * (KeyTile::BYTES + ValueTile::BYTES) + i * Mbarrier::BYTES};
    }
};
static_assert(QueryTile::BYTES + STAGES * (KeyTile::BYTES + ValueTile::BYTES) + (2 + 4 * STAGES) * Mbarrier::BYTES == SHARED);

// A block of queries: the longest ones of a section's heads come first.
struct Tile {
    int line, head;
    AttentionSequence sequence;
    Range block;
    int last, count; // its key tiles, visited from the last one down

    __device__ __forceinline__ Tile(const AttentionForward& p, int n)
        : line(line_of(p, n)), head(line % p.shape.heads), sequence(p.shape, line / p.shape.heads) {
        block.first = block_of(p, n) * ROWS;
        block.end = min(sequence.queries.length, block.first + ROWS);
        Range keys = sequence.seen(p.shape, block);
        last = (keys.end - 1) / KEYS;
        count = block.end > block.first && keys.end > keys.first ? last - keys.first / KEYS + 1 : 0;
    }

private:
    static __device__ __forceinline__ int width(const AttentionForward& p, int section) {
        return min(p.section, p.shape.queries.count * p.shape.heads - section * p.section);
    }
    static __device__ __forceinline__ int line_of(const AttentionForward& p, int n) {
        int section = n / (p.blocks * p.section);
        return section * p.section + n % (p.blocks * p.section) % width(p, section);
    }
    static __device__ __forceinline__ int block_of(const AttentionForward& p, int n) {
        return p.blocks - 1 - n % (p.blocks * p.section) / width(p, n / (p.blocks * p.section));
    }
};

// By one thread.
__device__ __forceinline__ void produce(const AttentionForward& p, const Memory& memory) {
    prefetch_map(p.q), prefetch_map(p.k), prefetch_map(p.v);
    int n = 0, queries = 0;
    for (int t = blockIdx.x; t < p.tiles; t += gridDim.x) {
        Tile tile(p, t);
        if (tile.count == 0) continue;
        int head = tile.head / p.shape.group, first = (int)tile.sequence.keys.start, batch = (int)tile.sequence.keys.batch;
        auto load_values = [&](int n, int place) {
            memory.value_empty(n).wait(n / STAGES - 1);
            memory.value_full(n).arrive_expecting(ValueTile::BYTES);
            copy_tile(memory.value(n), p.v, head, first + place * KEYS, batch, memory.value_full(n));
        };
        memory.query_empty().wait(queries++ - 1);
        memory.query_full().arrive_expecting(QueryTile::BYTES);
        copy_tile(memory.query(), p.q, tile.head, (int)tile.sequence.queries.start + tile.block.first,
                  (int)tile.sequence.queries.batch, memory.query_full());
        for (int i = 0; i < tile.count; i++, n++) {
            memory.key_empty(n).wait(n / STAGES - 1);
            memory.key_full(n).arrive_expecting(KeyTile::BYTES);
            copy_tile(memory.key(n), p.k, head, first + (tile.last - i) * KEYS, batch, memory.key_full(n));
            if (i > 0) load_values(n - 1, tile.last - i + 1);
        }
        load_values(n - 1, tile.last - tile.count + 1);
    }
}

// The two rows that a thread has a part of.
struct SoftmaxRows {
    float top[2], sum[2]; // what scores are compared with, times `factor` a logarithm; the sum of the thread's weights

    // Turns scores into weights. What was summed before is to be multiplied by `decay`, where the result is true for some thread.
    template <int N> __device__ __forceinline__ bool weigh(float (&scores)[N][4], float factor, float (&decay)[2]) {
        bool grew = false;
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float highest = top[r];
#pragma unroll
            for (int n = 0; n < N; n++) highest = fmaxf(highest, fmaxf(scores[n][2 * r], scores[n][2 * r + 1]));
            highest = quad_max(highest);
            decay[r] = 1;
            if ((highest - top[r]) * factor > SLACK) {
                decay[r] = pow2((top[r] - highest) * factor);
                top[r] = highest;
                sum[r] *= decay[r];
                grew = true;
            }
            float shift = top[r] == hidden() ? 0.f : top[r] * factor; // no key seen yet
#pragma unroll
            for (int n = 0; n < N; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    scores[n][e] = pow2(scores[n][e] * factor - shift);
                    sum[r] += scores[n][e];
                }
        }
        return grew;
    }
};

__device__ __forceinline__ void consume(const AttentionForward& p, const Memory& memory, int warp) {
    int group = warp / 4, lane = threadIdx.x % 32, n = 0, queries = 0;
    auto take_turn = [&] {
        if (PINGPONG) barrier_wait(1 + group, 256);
    };
    auto pass_turn = [&](int from) {
        if (PINGPONG) barrier_arrive(1 + (from + 1) % GROUPS, 256);
    };
    if (group == GROUPS - 1) pass_turn(group);

    float out[V / 8][4], scores[KEYS / 8][4];
    u32 weights[KEYS / 16][4];
    auto multiply_keys = [&] {
        memory.key_full(n).wait(n / STAGES);
        begin_products(scores);
#pragma unroll
        for (int k = 0; k < K; k += 16)
            product<0, 0, T>(scores, operand(memory.query(), 64 * group, k), operand(memory.key(n), 0, k), k > 0);
        commit_products();
    };
    auto multiply_values = [&](bool add) {
        memory.value_full(n - 1).wait((n - 1) / STAGES);
        begin_products(out, weights);
#pragma unroll
        for (int j = 0; j < KEYS; j += 16)
            product<1, T>(out, weights[j / 16], operand_transposed(memory.value(n - 1), j, 0), add || j > 0);
        commit_products();
    };

    for (int t = blockIdx.x; t < p.tiles; t += gridDim.x) {
        Tile tile(p, t);
        if (tile.block.end <= tile.block.first) continue;
        int row = tile.block.first + warp * 16 + lane / 4, ahead = tile.sequence.ahead;
        Range open = tile.sequence.seen_by_all(p.shape, tile.block);
        AttentionScore score(p.shape, tile.head);
        AttentionDropout dropout(p.shape, tile.sequence.queries.index, tile.head);
        float factor = OPTIONS ? 1.f : score.factor, decay[2];
        SoftmaxRows rows{{hidden(), hidden()}, {0, 0}};
        if (OPTIONS && p.shape.sinks) {
            float sink = LOG2E * p.shape.sinks[tile.head];
            rows.top[0] = rows.top[1] = sink;
            rows.sum[0] = rows.sum[1] = lane % 4 == 0 && sink > hidden() ? 1.f : 0.f;
        }
#pragma unroll
        for (auto& sums : out)
#pragma unroll
            for (float& sum : sums) sum = 0;

        // The scores of key tile i, as the products leave them, to weights.
        auto weigh = [&](int i) {
            int key = (tile.last - i) * KEYS, col = key + lane % 4 * 2;
            if constexpr (OPTIONS) {
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) scores[n][e] = score.capped(scores[n][e]);
                if (p.shape.slopes)
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int e = 0; e < 4; e++)
                            scores[n][e] += score.bias(row + e / 2 * 8 + ahead - col - n * 8 - e % 2);
            }
            if (key < open.first || key + KEYS > open.end)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    Range seen = tile.sequence.seen(p.shape, {row + r * 8, row + r * 8 + 1});
                    int first = seen.first - col, end = seen.end - col;
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int e = 0; e < 2; e++)
                            if (n * 8 + e >= end || (OPTIONS && n * 8 + e < first)) scores[n][2 * r + e] = hidden();
                }
            bool grew = rows.weigh(scores, factor, decay);
            if (OPTIONS && dropout.threshold)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n += 2)
#pragma unroll
                    for (int e = 0; e < 2; e++) {
                        float factors[4];
                        dropout.draw(factors, row, col + n * 8 + e);
                        scores[n][e] *= factors[0], scores[n + 1][e] *= factors[1];
                        scores[n][2 + e] *= factors[2], scores[n + 1][2 + e] *= factors[3];
                    }
            return __any_sync(~0u, grew);
        };
        auto pack = [&] {
#pragma unroll
            for (int j = 0; j < KEYS / 16; j++)
#pragma unroll
                for (int i = 0; i < 4; i++)
                    weights[j][i] = Pair<T>::pack(scores[2 * j + i / 2][i % 2 * 2], scores[2 * j + i / 2][i % 2 * 2 + 1]);
        };

        if (tile.count > 0) {
            memory.query_full().wait(queries++);
            multiply_keys();
            wait_products<0>(scores);
            memory.key_empty(n).arrive_warp();
            weigh(0);
            pack();
            n++;
            for (int i = 1; i < tile.count; i++, n++) {
                take_turn();
                multiply_keys();
                multiply_values(true);
                pass_turn(group);
                wait_products<1>(scores);
                memory.key_empty(n).arrive_warp();
                bool grew = weigh(i);
                do wait_products<0>(out, weights);
                while (__any_sync(~0u, rows.sum[0] + rows.sum[1] < 0)); // never; so that the machine's compiler leaves the wait behind the weights
                memory.value_empty(n - 1).arrive_warp();
                pack();
                if (grew)
#pragma unroll
                    for (auto& sums : out)
#pragma unroll
                        for (int e = 0; e < 4; e++) sums[e] *= decay[e / 2];
            }
            memory.query_empty().arrive_warp();
            multiply_values(true);
            wait_products<0>(out, weights);
            memory.value_empty(n - 1).arrive_warp();
        }

        auto target = tile.sequence.queries.rows<T>(p.o, tile.head);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            int query = row + r * 8;
            float sum = quad_sum(rows.sum[r]), inverse = sum == 0.f ? 0.f : 1 / sum;
            bool exists = query < tile.block.end;
            if (exists && p.log_sum_exp && lane % 4 == 0) {
                i64 place = ((i64)tile.sequence.queries.batch * p.shape.heads + tile.head) * p.time + tile.sequence.queries.start + query;
                p.log_sum_exp[place] = sum == 0.f ? hidden() : LN2 * (rows.top[r] * factor + __log2f(sum));
            }
#pragma unroll
            for (int v = 0; v < V; v += 32) {
                u32 words[4];
#pragma unroll
                for (int i = 0; i < 4; i++)
                    words[i] = Pair<T>::pack(out[v / 8 + i][2 * r] * inverse, out[v / 8 + i][2 * r + 1] * inverse);
                quad_transpose(words, lane);
                int col = v + lane % 4 * 8;
                if (exists && col < p.shape.value_size)
                    *reinterpret_cast<uint4*>(target[query] + col) = make_uint4(words[0], words[1], words[2], words[3]);
            }
        }
    }
    if (group == 0) take_turn(); // the one that nobody needs any more
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) attention_forward(const __grid_constant__ AttentionForward p) {
    Memory memory;
    if (threadIdx.x == 0) memory.make_barriers();
    __syncthreads();
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0); // known to be the same for all its lanes
    if (warp >= CONSUMERS / 32) {
        set_registers<PRODUCER_REGISTERS, REGISTERS>();
        if (warp == CONSUMERS / 32 && threadIdx.x % 32 == 0) produce(p, memory);
    } else {
        set_registers<CONSUMER_REGISTERS, REGISTERS>();
        consume(p, memory, warp);
    }
}
