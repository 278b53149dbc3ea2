// Gated linear attention forward: chunk after chunk of a sequence, the state on the chip.
//
// Yang et al. 2023 (arXiv:2312.06635), with the state transposed, S^T [V x K], in the accumulators of the consumer warps:
//   o^T = S^T q^T + v^T A^T,   S^T += v^T k,   A = tril(q k^T),   q and k scaled by the chunk's decays (gate_frame.cuh)
// so that S is a left operand as it stands and never leaves the registers. Producer warps load and scale the next chunk and
// make its A meanwhile.
#include "fla/chunk_pipeline.cuh"
#include "fla/gla_forward.cuh"
#include "fla/transposed_state.cuh"
#if HOPPER
#include "fla/wgmma.cuh"
#endif

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, C = CHUNK;
constexpr int PRODUCER_THREADS = 32 * PRODUCERS, CONSUMER_THREADS = 32 * CONSUMERS, THREADS = PRODUCER_THREADS + CONSUMER_THREADS;
constexpr int ROW_TILES = V / 16 / CONSUMERS; // of 16 value channels, for each consumer warp
static_assert(!HOPPER || (ROW_TILES == 1 && V % 64 == 0 && PRODUCERS % 4 == 0)); // four warps share a product of 64 of them

typedef ChunkGates<C, K, PRODUCER_THREADS> Gates;
typedef OperandOf<T>::Type Operand;
typedef SharedTile<Operand, C, K> KeyTile;
typedef SharedTile<Operand, C, V> ValueTile;
typedef PlainTile<G, C, K> GateTile;
typedef SharedTile<T, C, V> OutputTile;
typedef SharedTile<Operand, C, C> PairTile;
typedef GlaBlock<C, SAVED_TOKENS<T>> Block;

constexpr int TERMS = KeyTile::TERMS; // of a number as an operand, and in a saved state

// One chunk on its way. What is no longer needed makes room: the output may overwrite the queries; the operands of binary
// splitting, and then the state's factors, overwrite the decays; and A the totals of these.
struct Stage {
    static constexpr int Q = 0, OUTPUT = V <= K ? Q : Q + KeyTile::BYTES,
                         KEY = V <= K ? Q + KeyTile::BYTES : OUTPUT + OutputTile::BYTES, VALUE = KEY + KeyTile::BYTES,
                         GATE = VALUE + ValueTile::BYTES, PAIRS = GATE + GateTile::BYTES, BYTES = PAIRS + PairTile::BYTES;
    static_assert(BYTES % (HOPPER ? 1024 : 128) == 0);
    static constexpr int START = GATE, MIDDLE = START + K * 4, END = MIDDLE + K * 4, SAVING = END + K * 4;
    static_assert(SAVING + K * 4 <= PAIRS && Gates::Totals::BYTES <= PairTile::BYTES);
    u32 memory;

    __device__ __forceinline__ explicit Stage(int n) : memory(shared_memory() + n % STAGES * BYTES) {}
    __device__ __forceinline__ KeyTile q() const { return KeyTile(memory + Q); }
    __device__ __forceinline__ KeyTile k() const { return KeyTile(memory + KEY); }
    __device__ __forceinline__ ValueTile v() const { return ValueTile(memory + VALUE); }
    __device__ __forceinline__ GateTile g() const { return GateTile(memory + GATE); }
    __device__ __forceinline__ KeyTile split() const { return KeyTile(memory + GATE); }
    __device__ __forceinline__ PairTile pairs() const { return PairTile(memory + PAIRS); }
    __device__ __forceinline__ Gates::Totals totals() const { return Gates::Totals(memory + PAIRS); }
    __device__ __forceinline__ OutputTile output() const { return OutputTile(memory + OUTPUT); }
    // Factors of the state for each key channel: before the chunk, between output and update, and after it. Those in the middle
    // are less than 0 where there are none: only decays too strong for a frame need them.
    __device__ __forceinline__ u32 start() const { return memory + START; }
    __device__ __forceinline__ u32 middle() const { return memory + MIDDLE; }
    __device__ __forceinline__ u32 end() const { return memory + END; }
    __device__ __forceinline__ bool has_middle() const { return !(shared_load<float>(middle()) < 0.f); } // NaN is one
    // Of the state as backward wants it, before the chunk.
    __device__ __forceinline__ u32 saving() const { return memory + SAVING; }
};

typedef ChunkPipeline<STAGES, PRODUCER_THREADS, CONSUMER_THREADS, STAGES * Stage::BYTES> Pipeline;
static_assert(Pipeline::END == SHARED);

// Scales queries and keys of a loaded chunk and makes A. `pending` is the state's decay that is still to be applied. If the state
// before the chunk is saved, `plain` is told whether backward's chunk, which begins with this one, has too strong decays before
// its middle.
__device__ __forceinline__ void prepare(const Stage& stage, float (&pending)[2], float scale, int* plain) {
    int thread = opaque(threadIdx.x);
    Gates gates(thread);
    auto [strong, saved_plain] = prepare_operands<T, G, C, PRODUCERS, Pipeline>(gates, thread, stage, pending, scale, plain);
    if (strong) Pipeline::sync_producers(); // the last level of splitting is read
    const float(&saved_middle)[2] = middle_of_saved<T, C>(gates);
    if (gates.row > 0) return;
#pragma unroll
    for (int c = 0; c < 2; c++) {
        u32 place = (gates.col + c) * 4;
        shared_store(stage.start() + place, pow2(pending[c] + (strong ? 0.f : gates.middle[c])));
        if (plain) shared_store(stage.saving() + place, pow2(pending[c] + (saved_plain ? 0.f : saved_middle[c])));
        shared_store(stage.middle() + place, strong ? pow2(gates.end[c]) : -1.f);
        pending[c] = strong ? 0.f : gates.end[c] - gates.middle[c];
        shared_store(stage.end() + place, pow2(pending[c]));
    }
    if (plain && gates.col == 0 && blockIdx.y == 0) *plain = saved_plain;
}

__device__ __forceinline__ void produce(const GlaChunkForward& p, const Block& block) {
    // The rows of the chunk to be loaded next: they move on with it.
    int first = block.first * C, kv_head = block.head / p.shape.group, value = blockIdx.y * V;
    auto q = block.sequence.rows<Operand>(p.q, block.head).from(first),
         k = block.sequence.rows<Operand>(p.k, kv_head).from(first), v = block.sequence.rows<Operand>(p.v, kv_head).from(first);
    auto g = block.sequence.rows<G>(p.g, kv_head).from(first);
    v.first += value;
    auto load = [&](int n) {
        if (n >= block.chunks) return;
        int thread = opaque(threadIdx.x), rows = block.rows(n);
        Stage stage(n);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.g(), g, 0, rows, p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.q(), q, 0, rows, p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.k(), k, 0, rows, p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.v(), v, 0, rows, p.shape.value_size - value, thread);
        g = g.from(C), q = q.from(C), k = k.from(C), v = v.from(C);
    };

    float pending[2] = {0.f, 0.f};
    Pipeline::produce(block.chunks, load, [&](int n) {
        int* plain =
            saves<T, C>(p, block, n) ? p.plain + block.slot(p.shape.sequences, n) * p.shape.heads + opaque(block.head) : nullptr;
        prepare(Stage(n), pending, p.scale, plain);
#if HOPPER
        fence_for_products();
#endif
    });
}

typedef TransposedState<ROW_TILES, K> State;

#if HOPPER
// The outputs of a warp's value channels with pairs taken one by one: `left` is the state before the chunk.
__device__ __forceinline__ void output_one_by_one(float (&out)[C / 8][4], const u32 (&left)[K / 16][4], const Stage& stage,
                                                  int row, int lane) {
#pragma unroll
    for (int t = 0; t < C; t += 16) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[t / 8][e] = out[t / 8 + 1][e] = 0.f;
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            u32 b[4];
            load_right_transposed(b, stage.q(), t, k, lane);
            mma_16x16(out[t / 8], out[t / 8 + 1], left[k / 16], b);
        }
    }
    add_one_by_one(out, stage.v(), row, lane, [=](float& sum, int t, int j, float v) {
        sum += to_float(shared_load<bf16>(stage.pairs().at(t, j))) * v;
    });
}

// The consumers' work on a chunk, the state being scaled for it: its output, and the state after it. `row` is the warp's first
// value channel in the tiles.
__device__ __forceinline__ void advance(const GlaChunkForward& p, const Block& block, const Stage& stage, int n, State& state,
                                        int row, int lane) {
    constexpr int GROUP = 128; // threads that share products
    int first = row / 64 * 64; // the group's first value channel
    float out[C / 8][4] = {};
    float(&sum)[K / 8][4] = state.sum[0];
    u32 left[K / 16][4];
#pragma unroll
    for (int k = 0; k < K; k += 16) pack_left(left[k / 16], sum[k / 8], sum[k / 8 + 1]);
    if (stage.has_middle()) state.scale(stage.middle(), lane);

    begin_products(out, left, sum);
#pragma unroll
    for (int k = 0; k < K; k += 16) product<0>(out, left[k / 16], operand(stage.q(), 0, k)); // o^T = S^T q^T + v^T A^T
#pragma unroll
    for (int j = 0; j < C; j += 16) product<1, 0>(out, operand_transposed(stage.v(), j, first), operand(stage.pairs(), 0, j));
    commit_products();
#pragma unroll
    for (int j = 0; j < C; j += 16) // S^T += v^T k
        product<1, 1>(sum, operand_transposed(stage.v(), j, first), operand_transposed(stage.k(), j, 0));
    commit_products();

    wait_products<1>(out);
    // A value that is not finite made its channel NaN all over the chunk: a product with the 0 of later pairs reaches tokens
    // before it.
    if (!__all_sync(~0u, isfinite(out[0][0]) && isfinite(out[0][2]))) output_one_by_one(out, left, stage, row, lane);
    if (Stage::OUTPUT == Stage::Q) Pipeline::sync_consumers(); // the queries are read
    store_transposed<VECTOR, C>(out, stage.output(), row, block.sequence.rows<T>(p.o, opaque(block.head)), (block.first + n) * C,
                                block.rows(n), blockIdx.y * V, p.shape.value_size, lane,
                                [=] { Pipeline::sync_group(row / 64, GROUP); });
    wait_products<0>(sum);
}
#else
// The same with the products of single warps. Those of pairs skip later blocks of 16 tokens: a value that is not finite makes its
// channel NaN in at most 15 tokens before it.
__device__ __forceinline__ void advance(const GlaChunkForward& p, const Block& block, const Stage& stage, int n, State& state,
                                        int row, int& lane) {
    float out[ROW_TILES][C / 8][4] = {};
#pragma unroll
    for (int k = 0; k < K; k += 16) { // o^T = S^T q^T
        KeyTile::Fragment a[ROW_TILES], b[C / 16];
#pragma unroll
        for (int t = 0; t < C; t += 16) load_right_transposed(b[t / 16], stage.q(), t, k, lane);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) pack_left(a[m], state.sum[m][k / 8], state.sum[m][k / 8 + 1]);
#pragma unroll
        for (int t = 0; t < C; t += 16)
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) mma_16x16(out[m][t / 8], out[m][t / 8 + 1], a[m], b[t / 16]);
    }
    if (stage.has_middle()) state.scale(stage.middle(), lane);
#pragma unroll
    for (int j = 0; j < C; j += 16) { // o^T += v^T A^T, S^T += v^T k
        lane = opaque(lane);
        KeyTile::Fragment a[ROW_TILES], b[C / 16];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) load_left_transposed(a[m], stage.v(), j, row + m * 16, lane);
#pragma unroll
        for (int t = j; t < C; t += 16) load_right_transposed(b[t / 16], stage.pairs(), t, j, lane);
#pragma unroll
        for (int t = j; t < C; t += 16)
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) mma_16x16(out[m][t / 8], out[m][t / 8 + 1], a[m], b[t / 16]);
        state.add(a, stage.k(), j, lane);
    }
    if (Stage::OUTPUT == Stage::Q) Pipeline::sync_consumers(); // the queries are read
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int t = 0; t < C; t += 8)
#pragma unroll
            for (int e = 0; e < 2; e++)
                shared_store(stage.output().at(t + lane / 4, row + m * 16 + e * 8 + lane % 4 * 2),
                             transpose_8x8(Pair<T>::pack(out[m][t / 8][e * 2], out[m][t / 8][e * 2 + 1])));
    __syncwarp();
    auto o = block.sequence.rows<T>(p.o, opaque(block.head));
    store_tile<VECTOR, ROW_TILES * 16>(stage.output(), row, o, (block.first + n) * C, block.rows(n), blockIdx.y * V + row,
                                       p.shape.value_size, lane);
}
#endif

__device__ __forceinline__ void consume(const GlaChunkForward& p, const Block& block) {
    int warp = threadIdx.x / 32 - PRODUCERS, lane = threadIdx.x % 32;
    int row = warp * ROW_TILES * 16,
        value = blockIdx.y * V + row; // the warp's first value channel in the tiles and in the tensors
    const GlaShape& shape = p.shape;
    i64 state_size = (i64)shape.key_size * shape.value_size;
    State state;
    state.load(p.initial ? p.initial + block.state * state_size : nullptr, shape.key_size, shape.value_size, value, lane);

    for (int n = 0; n < block.chunks; n++) {
        lane = opaque(lane);
        Stage stage(n);
        Pipeline::wait(n);
        if (saves<T, C>(p, block, n)) {
            i64 slot = block.slot(shape.sequences, n) * shape.heads + opaque(block.head);
            state.save<TERMS>(reinterpret_cast<u32*>(p.states) + slot * gridDim.y * V * (TERMS * K / 2) +
                                  saved_pair<TERMS * K>(value, 0, lane),
                              stage.saving(), lane);
        }
        state.scale(stage.start(), lane);

        advance(p, block, stage, n, state, row, lane);
        Pipeline::release(n);
    }

    if (p.final && block.segment == shape.segments - 1) {
        if (block.chunks > 0) state.scale(Stage(block.chunks - 1).end(), lane);
        state.store(p.final + block.sequence_state(shape) * state_size, shape.key_size, shape.value_size, value, lane);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gla_chunk_forward(const __grid_constant__ GlaChunkForward p) {
    Block block(p.shape, blockIdx.x);
    Pipeline::run<PRODUCER_REGISTERS, CONSUMER_REGISTERS>([&] { produce(p, block); }, [&] { consume(p, block); });
}
