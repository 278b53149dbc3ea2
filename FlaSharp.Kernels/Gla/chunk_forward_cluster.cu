// Gated linear attention forward as chunk_forward.cu, by clusters of two blocks: both carry a part of the state's values for all
// keys, and each prepares one half of the keys for both.
//
// What a block has made of its half of a chunk's queries and keys - themselves scaled, their products A of pairs, the factors of
// the state - lies in one stretch of memory and goes to the other block as it is. The halves' pairs are not added up: both are
// operands of products. So each half has decays too strong for a frame, or not, on its own.
#include "fla/chunk_pipeline.cuh"
#include "fla/gla_forward.cuh"
#include "fla/transposed_state.cuh"
#include "fla/wgmma.cuh"

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, HALF = K / 2, V = VALUE_TILE, C = CHUNK;
constexpr int LEFT_KEYS = K > 128 ? 16 : 32;
constexpr int PRODUCER_THREADS = 32 * PRODUCERS, CONSUMER_THREADS = 32 * CONSUMERS,
              THREADS = PRODUCER_THREADS + CONSUMER_THREADS;
static_assert(V % 64 == 0 && CONSUMERS == V / 16 && PRODUCERS % 4 == 0); // four warps share a product of 64 value channels

typedef ChunkGates<C, HALF, PRODUCER_THREADS> Gates;
typedef SharedTile<bf16, C, HALF> KeyTile;
typedef SharedTile<bf16, C, V> ValueTile;
typedef PlainTile<G, C, HALF> GateTile;
typedef SharedTile<T, C, V> OutputTile;
typedef SharedTile<bf16, C, C> PairTile;
typedef GlaBlock<C, SAVED_TOKENS<T>> Block;

// One half of a chunk's keys.
struct Half {
    // Factors of the state for each key channel: before the chunk, between output and update, and after it. Those in the middle
    // are less than 0 where there are none. Of the state as backward wants it, scaled and plain; and whether it has to be plain.
    static constexpr int Q = 0, KEY = Q + KeyTile::BYTES, PAIRS = KEY + KeyTile::BYTES, START = PAIRS + PairTile::BYTES,
                         MIDDLE = START + HALF * 4, END = MIDDLE + HALF * 4, SAVING = END + HALF * 4,
                         PLAIN = SAVING + HALF * 4, IS_PLAIN = PLAIN + HALF * 4, USED = IS_PLAIN + 16,
                         BYTES = (USED + 1023) / 1024 * 1024;
    static_assert(Gates::Totals::BYTES <= PairTile::BYTES);
    u32 memory;

    __device__ __forceinline__ KeyTile q() const { return KeyTile(memory + Q); }
    __device__ __forceinline__ KeyTile k() const { return KeyTile(memory + KEY); }
    __device__ __forceinline__ PairTile pairs() const { return PairTile(memory + PAIRS); }
    __device__ __forceinline__ Gates::Totals totals() const { return Gates::Totals(memory + PAIRS); }
    __device__ __forceinline__ bool has_middle() const { return !(shared_load<float>(memory + MIDDLE) < 0.f); } // NaN is one
    __device__ __forceinline__ bool is_plain() const { return shared_load<u32>(memory + IS_PLAIN) != 0; }
};

// One chunk on its way. The operands of binary splitting overwrite the decays.
struct Stage {
    static constexpr int VALUE = 2 * Half::BYTES, GATE = VALUE + ValueTile::BYTES, BYTES = GATE + GateTile::BYTES;
    static_assert(BYTES % 1024 == 0 && KeyTile::BYTES <= GateTile::BYTES);
    u32 memory;

    __device__ __forceinline__ explicit Stage(int n) : memory(shared_memory() + n % STAGES * BYTES) {}
    __device__ __forceinline__ Half half(int which) const { return {memory + which * Half::BYTES}; }
    __device__ __forceinline__ ValueTile v() const { return ValueTile(memory + VALUE); }
    __device__ __forceinline__ GateTile g() const { return GateTile(memory + GATE); }
    __device__ __forceinline__ KeyTile split() const { return KeyTile(memory + GATE); }
};

constexpr int OUTPUTS = STAGES * Stage::BYTES, BARRIERS = OUTPUTS + 2 * OutputTile::BYTES;
typedef ChunkPipeline<STAGES, PRODUCER_THREADS, CONSUMER_THREADS, BARRIERS, 2> Pipeline;
static_assert(Pipeline::END == SHARED);

// What a block prepares of a chunk.
struct Share : Half {
    Stage stage;

    __device__ __forceinline__ Share(const Stage& stage, int rank) : Half(stage.half(rank)), stage(stage) {}
    __device__ __forceinline__ ValueTile v() const { return stage.v(); }
    __device__ __forceinline__ GateTile g() const { return stage.g(); }
    __device__ __forceinline__ KeyTile split() const { return stage.split(); }
};

// Scales queries and keys of this block's half of a loaded chunk and makes A. `pending` is the state's decay that is still to be
// applied.
__device__ __forceinline__ void prepare(const Share& half, float (&pending)[2], float scale, bool saves) {
    int thread = opaque(threadIdx.x);
    Gates gates(thread);
    auto [strong, saved_plain] = prepare_operands<T, G, C, PRODUCERS, Pipeline>(gates, thread, half, pending, scale, saves);
    const float(&saved_middle)[2] = middle_of_saved<T, C>(gates);
    if (gates.row > 0) return;
    auto store = [&](int which, float x, float y) { shared_store(half.memory + which + gates.col * 4, make_float2(x, y)); };
    store(Half::START, pow2(pending[0] + (strong ? 0.f : gates.middle[0])), pow2(pending[1] + (strong ? 0.f : gates.middle[1])));
    if (saves) {
        store(Half::SAVING, pow2(pending[0] + saved_middle[0]), pow2(pending[1] + saved_middle[1]));
        store(Half::PLAIN, pow2(pending[0]), pow2(pending[1]));
        if (gates.col == 0) shared_store(half.memory + Half::IS_PLAIN, (u32)saved_plain);
    }
    store(Half::MIDDLE, strong ? pow2(gates.end[0]) : -1.f, strong ? pow2(gates.end[1]) : -1.f);
#pragma unroll
    for (int c = 0; c < 2; c++) pending[c] = strong ? 0.f : gates.end[c] - gates.middle[c];
    store(Half::END, pow2(pending[0]), pow2(pending[1]));
}

__device__ __forceinline__ void produce(const GlaChunkForward& p, const Block& block) {
    // The rows of the chunk to be loaded next: they move on with it.
    int first = block.first * C, kv_head = block.head / p.shape.group, rank = blockIdx.y % 2;
    auto q = block.sequence.rows<bf16>(p.q, block.head).from(first), k = block.sequence.rows<bf16>(p.k, kv_head).from(first),
         v = block.sequence.rows<bf16>(p.v, kv_head).from(first);
    auto g = block.sequence.rows<G>(p.g, kv_head).from(first);
    q.first += rank * HALF, k.first += rank * HALF, g.first += rank * HALF, v.first += blockIdx.y * V;
    auto load = [&](int n) {
        if (n >= block.chunks) return;
        int thread = opaque(threadIdx.x), rows = block.rows(n), keys = p.shape.key_size - rank * HALF;
        Stage stage(n);
        Half half = stage.half(rank);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.g(), g, 0, rows, keys, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(half.q(), q, 0, rows, keys, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(half.k(), k, 0, rows, keys, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.v(), v, 0, rows, p.shape.value_size - (int)blockIdx.y * V, thread);
        g = g.from(C), q = q.from(C), k = k.from(C), v = v.from(C);
    };

    float pending[2] = {0.f, 0.f};
    Pipeline::produce(
        block.chunks, load,
        [&](int n) {
            prepare(Share(Stage(n), rank), pending, p.scale, saves<T, C>(p, block, n));
            fence_for_products();
            Pipeline::sync_producers();
        },
        [&](int n, Mbarrier full) {
            if (threadIdx.x > 0) return full.arrive();
            full.arrive_expecting(Half::USED);
            Pipeline::Blocks::copy(Stage(n).half(rank).memory, Half::USED, rank ^ 1, full);
        });
}

typedef TransposedState<1, K> State;
// A half of it.
typedef float HalfSum[HALF / 8][4];

__device__ __forceinline__ HalfSum& half_of(State& state, int which) {
    return reinterpret_cast<HalfSum&>(state.sum[0][which * (HALF / 8)]);
}

// The state times one of its factors.
__device__ __forceinline__ void scale_half(HalfSum& sum, u32 factors, int lane) {
#pragma unroll
    for (int n = 0; n < HALF / 8; n++) {
        float2 by = State::factor(factors, n, lane);
        sum[n][0] *= by.x, sum[n][1] *= by.y, sum[n][2] *= by.x, sum[n][3] *= by.y;
    }
}

__device__ __forceinline__ void save(const GlaChunkForward& p, const Block& block, const Stage& stage, int n, State& state,
                                     int value, int lane) {
    i64 slot = block.slot(p.shape.sequences, n) * p.shape.heads + opaque(block.head);
    bool plain = stage.half(0).is_plain() || stage.half(1).is_plain();
    if (value == 0 && lane == 0) p.plain[slot] = plain;
    u32* to = reinterpret_cast<u32*>(p.states) + slot * gridDim.y * V * (K / 2) + saved_pair<K>(value, 0, lane);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        HalfSum& sum = half_of(state, h);
        u32 factors = stage.half(h).memory + (plain ? Half::PLAIN : Half::SAVING);
#pragma unroll
        for (int i = 0; i < HALF / 8; i++) {
            float2 by = State::factor(factors, i, lane);
#pragma unroll
            for (int e = 0; e < 2; e++)
                to[saved_pair<K>(e * 8, h * HALF + i * 8, 0)] = Pair<bf16>::pack(sum[i][e * 2] * by.x, sum[i][e * 2 + 1] * by.y);
        }
    }
}

// What a warp's value channels get from the chunk's own tokens, with pairs taken one by one.
__device__ __forceinline__ void output_one_by_one(float (&out)[C / 8][4], const Stage& stage, int row, int lane) {
#pragma unroll
    for (int n = 0; n < C / 8; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) out[n][e] = 0.f;
    add_one_by_one(out, stage.v(), row, lane, [=](float& sum, int t, int j, float v) {
        for (int h = 0; h < 2; h++) sum += to_float(shared_load<bf16>(stage.half(h).pairs().at(t, j))) * v;
    });
}

// The consumers' work on a chunk, the state being scaled for it: its output, and the state after it. `row` is the warp's first
// value channel in the tiles.
__device__ __forceinline__ void advance(const GlaChunkForward& p, const Block& block, const Stage& stage, int n, State& state,
                                        int row, int lane) {
    constexpr int GROUP = 128; // threads that share products
    int first = row / 64 * 64; // the group's first value channel
#pragma unroll
    for (int h = 0; h < 2; h++) scale_half(half_of(state, h), stage.half(h).memory + Half::START, lane);
    float out[C / 8][4] = {};
    begin_products(out);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < C; j += 16) // o^T = v^T A^T
            product<1, 0>(out, operand_transposed(stage.v(), j, first), operand(stage.half(h).pairs(), 0, j));
    commit_products();
    wait_products<0>(out);
    // A value that is not finite made its channel NaN all over the chunk: a product with the 0 of later pairs reaches tokens
    // before it.
    if (!__all_sync(~0u, isfinite(out[0][0]) && isfinite(out[0][2]))) output_one_by_one(out, stage, row, lane);
    u32 left[2][LEFT_KEYS / 16][4]; // of products under way, and of the next ones
#pragma unroll
    for (int i = 0; i < K / LEFT_KEYS; i++) { // o^T += S^T q^T
        if (i >= 2) wait_products<1>(left[i % 2]);
#pragma unroll
        for (int k = 0; k < LEFT_KEYS; k += 16) {
            int n = (i * LEFT_KEYS + k) / 8;
            pack_left(left[i % 2][k / 16], state.sum[0][n], state.sum[0][n + 1]);
        }
        if (i == 0)
            begin_products(out, left[0]);
        else
            begin_products(left[i % 2]);
#pragma unroll
        for (int k = 0; k < LEFT_KEYS; k += 16) {
            int key = i * LEFT_KEYS + k;
            product<0>(out, left[i % 2][k / 16], operand(stage.half(key / HALF).q(), 0, key % HALF));
        }
        commit_products();
    }
    wait_products<0>(out, left[0], left[1]);
#pragma unroll
    for (int h = 0; h < 2; h++)
        if (stage.half(h).has_middle()) scale_half(half_of(state, h), stage.half(h).memory + Half::MIDDLE, lane);
    begin_products(half_of(state, 0), half_of(state, 1));
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int j = 0; j < C; j += 16) // S^T += v^T k
            product<1, 1>(half_of(state, h), operand_transposed(stage.v(), j, first),
                          operand_transposed(stage.half(h).k(), j, 0));
    commit_products();

    OutputTile output(shared_memory() + OUTPUTS + n % 2 * OutputTile::BYTES);
    store_transposed<VECTOR, C>(out, output, row, block.sequence.rows<T>(p.o, opaque(block.head)), (block.first + n) * C,
                                block.rows(n), blockIdx.y * V, p.shape.value_size, lane,
                                [=] { Pipeline::sync_group(row / 64, GROUP); });
    wait_products<0>(half_of(state, 0), half_of(state, 1));
}

__device__ __forceinline__ void consume(const GlaChunkForward& p, const Block& block) {
    int warp = threadIdx.x / 32 - PRODUCERS, lane = threadIdx.x % 32;
    int row = warp * 16, value = blockIdx.y * V + row; // the warp's first value channel in the tiles and in the tensors
    const GlaShape& shape = p.shape;
    i64 state_size = (i64)shape.key_size * shape.value_size;
    State state;
    state.load(p.initial ? p.initial + block.state * state_size : nullptr, shape.key_size, shape.value_size, value, lane);

    for (int n = 0; n < block.chunks; n++) {
        lane = opaque(lane);
        Stage stage(n);
        Pipeline::wait(n);
        if (saves<T, C>(p, block, n)) save(p, block, stage, n, state, value, lane);
        advance(p, block, stage, n, state, row, lane);
        Pipeline::release(n);
        Pipeline::release_in(blockIdx.y % 2 ^ 1, n);
    }

    if (p.final && block.segment == shape.segments - 1) {
        if (block.chunks > 0)
#pragma unroll
            for (int h = 0; h < 2; h++)
                scale_half(half_of(state, h), Stage(block.chunks - 1).half(h).memory + Half::END, lane);
        state.store(p.final + block.sequence_state(shape) * state_size, shape.key_size, shape.value_size, value, lane);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) __cluster_dims__(1, 2, 1)
gla_chunk_forward_cluster(const __grid_constant__ GlaChunkForward p) {
    Block block(p.shape, blockIdx.x);
    Pipeline::run<PRODUCER_REGISTERS, CONSUMER_REGISTERS>([&] { produce(p, block); }, [&] { consume(p, block); });
}
