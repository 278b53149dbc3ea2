// Softmax attention, forward, on Hopper: a block works on the queries of one head, a group of four warps on 64 of them, and a
// warp of its own brings boxes of keys and values.
//
// As Dao et al. 2022 (arXiv:2205.14135), key tile after key tile, and Shah et al. 2024 (arXiv:2407.08608): while a group turns
// the scores of a tile into weights, its product of the last tile's weights and values runs, and then those of the other groups.
#include "fla/attention_forward.cuh"
#include "fla/tma.cuh"
#include "fla/wgmma.cuh"

using namespace fla;

struct AttentionForward {
    TensorMap q, k, v;
    AttentionCall call;
};

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, KEYS = KEY_ROWS, ROWS = 64 * GROUPS;
constexpr bool RUNS_ON = QUERY_STAGES > 1; // whether the next queries lie there while the last ones' products end
constexpr int CONSUMERS = 128 * GROUPS, THREADS = CONSUMERS + 128; // registers change hands between groups of four warps
constexpr int REGISTERS = 65536 / THREADS / MIN_BLOCKS / 8 * 8; // of a thread at the launch
static_assert(PRODUCER_REGISTERS + GROUPS * CONSUMER_REGISTERS <= (1 + GROUPS) * REGISTERS, "or they would wait forever");

typedef AttentionTile<ROWS, KEYS> Tile;
typedef SharedTile<T, ROWS, K> QueryTile;
typedef SharedTile<T, KEYS, K> KeyTile;
typedef SharedTile<T, KEYS, V> ValueTile;

// Shared memory. Query, key and value tiles are counted through, n being the block's n-th one.
struct Memory {
    u32 base = shared_memory();

    static constexpr int KEYS_AT = QUERY_STAGES * QueryTile::BYTES, VALUES_AT = KEYS_AT + STAGES * KeyTile::BYTES;
    static constexpr int TILES_AT = VALUES_AT + STAGES * ValueTile::BYTES, TILES = QUERY_STAGES + 1;
    static constexpr int BARRIERS_AT = TILES_AT + TILES * (int)sizeof(Tile);
    static constexpr int BYTES = BARRIERS_AT + (2 * QUERY_STAGES + TILES + 4 * STAGES) * Mbarrier::BYTES;

    __device__ __forceinline__ QueryTile query(u32 n) const { return QueryTile(base + n % QUERY_STAGES * QueryTile::BYTES); }
    __device__ __forceinline__ KeyTile key(u32 n) const { return KeyTile(base + KEYS_AT + n % STAGES * KeyTile::BYTES); }
    __device__ __forceinline__ ValueTile value(u32 n) const {
        return ValueTile(base + VALUES_AT + n % STAGES * ValueTile::BYTES);
    }
    // Where a tile of queries lies; until the next one's first keys are used.
    __device__ __forceinline__ u32 tile(u32 n) const { return base + TILES_AT + n % TILES * (int)sizeof(Tile); }
    __device__ __forceinline__ Mbarrier key_full(u32 n) const { return barrier(n % STAGES); }
    __device__ __forceinline__ Mbarrier key_empty(u32 n) const { return barrier(STAGES + n % STAGES); }
    __device__ __forceinline__ Mbarrier value_full(u32 n) const { return barrier(2 * STAGES + n % STAGES); }
    __device__ __forceinline__ Mbarrier value_empty(u32 n) const { return barrier(3 * STAGES + n % STAGES); }
    __device__ __forceinline__ Mbarrier query_full(u32 n) const { return barrier(4 * STAGES + n % QUERY_STAGES); }
    __device__ __forceinline__ Mbarrier query_empty(u32 n) const {
        return barrier(4 * STAGES + QUERY_STAGES + n % QUERY_STAGES);
    }

    __device__ __forceinline__ Mbarrier tile_full(u32 n) const { return barrier(4 * STAGES + 2 * QUERY_STAGES + n % TILES); }

    __device__ __forceinline__ void make_barriers() const {
        for (int n = 0; n < TILES; n++) tile_full(n).init(1);
        for (int n = 0; n < QUERY_STAGES; n++) query_full(n).init(1), query_empty(n).init(CONSUMERS);
        for (int n = 0; n < STAGES; n++) {
            key_full(n).init(1), value_full(n).init(1);
            key_empty(n).init(CONSUMERS / 32), value_empty(n).init(CONSUMERS / 32);
        }
        fence_barriers();
    }

private:
    __device__ __forceinline__ Mbarrier barrier(int i) const { return {base + BARRIERS_AT + i * Mbarrier::BYTES}; }
};
static_assert(Memory::BYTES == SHARED);

// By one thread. What comes first is what has room first. Where a tile of queries lies it finds out for all.
__device__ __forceinline__ void produce(const AttentionForward& p, const Memory& memory) {
    prefetch_map(p.q), prefetch_map(p.k), prefetch_map(p.v);
    u32 n = 0, queries = 0;
    auto announce = [&](const Tile& tile) {
        memory.query_empty(queries).wait(queries / QUERY_STAGES - 1);
        shared_store_whole(memory.tile(queries), tile);
        memory.tile_full(queries).arrive();
    };
    for (AttentionTurn turn; turn.tile(p.call) < p.call.tiles; turn.round++) {
        Tile tile(p.call, turn.tile(p.call));
        if (!tile.exists()) continue;
        int head = tile.head / p.call.shape.group, first = (int)tile.sequence.keys.start, batch = (int)tile.sequence.keys.batch;
        auto load_keys = [&](u32 n, int i) {
            memory.key_empty(n).wait(n / STAGES - 1);
            memory.key_full(n).arrive_expecting(KeyTile::BYTES);
            copy_tile(memory.key(n), p.k, head, first + tile.key(i), batch, memory.key_full(n));
        };
        auto load_values = [&](u32 n, int i) {
            memory.value_empty(n).wait(n / STAGES - 1);
            memory.value_full(n).arrive_expecting(ValueTile::BYTES);
            copy_tile(memory.value(n), p.v, head, first + tile.key(i), batch, memory.value_full(n));
        };
        load_keys(n++, 0);
        announce(tile);
        memory.query_full(queries).arrive_expecting(QueryTile::BYTES);
        copy_tile(memory.query(queries), p.q, tile.head, (int)tile.sequence.queries.start + tile.block.first,
                  (int)tile.sequence.queries.batch, memory.query_full(queries));
        queries++;
        for (int i = 1; i < tile.count; i++, n++) {
            load_keys(n, i);
            load_values(n - 1, i - 1);
        }
        load_values(n - 1, tile.count - 1);
    }
    Tile none(p.call, 0);
    none.count = 0;
    announce(none);
}

__device__ __forceinline__ void consume(const AttentionForward& p, const Memory& memory, int warp) {
    int group = warp / 4, lane = threadIdx.x % 32;
    u32 n = 0, queries = 0; // steps and tiles of queries so far
    auto take_turn = [&] {
        if (PINGPONG) barrier_wait(1 + group, 256);
    };
    auto pass_turn = [&](int from) {
        if (PINGPONG) barrier_arrive(1 + (from + 1) % GROUPS, 256);
    };
    if (group == GROUPS - 1) pass_turn(group);

    float out[V / 8][4] = {}, scores[KEYS / 8][4];
    u32 weights[KEYS / 16][4] = {};
    auto multiply_keys = [&] {
        memory.key_full(n).wait(n / STAGES);
        begin_products(scores);
#pragma unroll
        for (int k = 0; k < K; k += 16)
            product<0, 0, T>(scores, operand(memory.query(queries), 64 * group, k), operand(memory.key(n), 0, k), k > 0);
        commit_products();
    };
    auto multiply_values = [&] {
        memory.value_full(n - 1).wait((n - 1) / STAGES);
        begin_products(out, weights);
#pragma unroll
        for (int j = 0; j < KEYS; j += 16)
            product<1, T>(out, weights[j / 16], operand_transposed(memory.value(n - 1), j, 0));
        commit_products();
    };
    auto next_tile = [&] {
        memory.tile_full(queries).wait(queries / Memory::TILES);
        return shared_load_whole<Tile>(memory.tile(queries));
    };
    auto rows_of = [&](const Tile& tile) {
        return AttentionRows<OPTIONS>(p.call.shape, tile.head, tile.block.first + warp * 16 + lane / 4, lane);
    };
    Tile tile = next_tile();
    auto done = rows_of(tile);
    auto store = [&] { done.store<T, 8>(out, p.call, shared_load_whole<Tile>(memory.tile(queries - 1))); };
    auto finish = [&] {
        multiply_values();
        wait_products<0>(out, weights);
        memory.value_empty(n - 1).arrive_warp();
        store();
    };

    for (; tile.count > 0; tile = next_tile()) {
        auto rows = rows_of(tile);
        Range open = tile.sequence.seen_by_all(p.call.shape, tile.block);
        memory.query_full(queries).wait(queries / QUERY_STAGES);
        // The first keys, and the last values of the queries before.
        take_turn();
        if (RUNS_ON && n > 0) multiply_values();
        multiply_keys();
        pass_turn(group);
        wait_products<0>(out, scores, weights);
        memory.key_empty(n).arrive_warp();
        if (RUNS_ON && n > 0) {
            memory.value_empty(n - 1).arrive_warp();
            store();
        }
#pragma unroll
        for (auto& sums : out)
#pragma unroll
            for (float& sum : sums) sum = 0;
        rows.weigh(scores, p.call.shape, tile, open, tile.key(0));
        pack_weights<T>(weights, scores);
        if (p.call.shape.keys.offsets && tile.key(0) + KEYS > tile.sequence.keys.length) {
            // The values of the next sequence, which weigh 0: that would not hide those that are not finite.
            memory.value_full(n).wait(n / STAGES);
            clear_rows<CONSUMERS>(memory.value(n), tile.sequence.keys.length - tile.key(0), threadIdx.x);
            fence_for_products();
            barrier_wait(1 + GROUPS, CONSUMERS);
        }
        n++;
        for (int i = 1; i < tile.count; i++, n++) {
            bool grew;
            take_turn();
            if constexpr (VALUES_FIRST) {
                multiply_values();
                multiply_keys();
                pass_turn(group);
                wait_products<0>(out, scores, weights);
                memory.key_empty(n).arrive_warp();
                memory.value_empty(n - 1).arrive_warp();
                grew = rows.weigh(scores, p.call.shape, tile, open, tile.key(i));
            } else {
                multiply_keys();
                multiply_values();
                pass_turn(group);
                wait_products<1>(scores);
                memory.key_empty(n).arrive_warp();
                grew = rows.weigh(scores, p.call.shape, tile, open, tile.key(i));
                // Never twice: written so that the machine's compiler leaves the wait behind the weights.
                do wait_products<0>(out, weights);
                while (__any_sync(~0u, rows.sum[0] + rows.sum[1] < 0));
                memory.value_empty(n - 1).arrive_warp();
            }
            pack_weights<T>(weights, scores);
            if (grew) rows.multiply(out);
        }
        memory.query_empty(queries++).arrive();
        done = rows;
        if (!RUNS_ON) finish();
    }
    if (RUNS_ON && n > 0) finish();
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
