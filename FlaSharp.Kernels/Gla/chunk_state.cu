// The state of gated linear attention alone, chunk after chunk of a segment; or, against time, its gradient. Both are sums of the
// kind S^T = S^T 2^e + y^T x:
//   forward    x = k 2^(e - G), y = v:           the states at the ends of segments
//   backward   x = scale q 2^G, y = do:          the gradients of the states, saved for each chunk's backward
// Producer warps load and scale the next chunk meanwhile; no factor here exceeds 1.
#include "fla/chunk_pipeline.cuh"
#include "fla/gate_frame.cuh"
#include "fla/gla.cuh"
#include "fla/transposed_state.cuh"

using namespace fla;

struct GlaChunkState {
    GlaShape shape;
    TensorView x, y, g;
    const float* initial; // [sequences, H, segments, K, V], or null for 0
    float* local;         // where each segment leads, [sequences, H, segments, K, V], or null
    float* decay;         // sums of each segment's log2 decays [sequences, H, segments, K], or null
    float* final;         // where the last visited segment leads [sequences, H, K, V], or null
    bf16* states;         // the scaled gradient after each chunk, [slots, H, V / 8, TERMS, K / 8] blocks of 8 x 8, or null
    int* plain;           // tells which of these are not scaled, [slots, H]
    float scale;          // of x
    int x_group, y_group; // query head h reads head h / group of x and y
};

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, C = CHUNK;
constexpr int PRODUCER_THREADS = 32 * PRODUCERS, CONSUMER_THREADS = 32 * CONSUMERS, THREADS = PRODUCER_THREADS + CONSUMER_THREADS;
constexpr int ROW_TILES = V / 16 / CONSUMERS;

typedef ChunkGates<C, K, PRODUCER_THREADS> Gates;
typedef OperandOf<T>::Type Operand;
typedef SharedTile<Operand, C, K> KeyTile;
typedef SharedTile<Operand, C, V> ValueTile;
typedef PlainTile<G, C, K> GateTile;
typedef GlaBlock<C, C> Block;

constexpr int TERMS = KeyTile::TERMS; // of a number as an operand, and in a saved state

// One chunk on its way. The state's factors overwrite the decays.
struct Stage {
    static constexpr int X = 0, Y = X + KeyTile::BYTES, GATE = Y + ValueTile::BYTES, BYTES = GATE + GateTile::BYTES;
    static constexpr int DECAY = GATE, SAVING = DECAY + K * 4;
    static_assert(SAVING + K * 4 <= BYTES);
    u32 memory;

    __device__ __forceinline__ explicit Stage(int n) : memory(shared_memory() + n % STAGES * BYTES) {}
    __device__ __forceinline__ KeyTile x() const { return KeyTile(memory + X); }
    __device__ __forceinline__ ValueTile y() const { return ValueTile(memory + Y); }
    __device__ __forceinline__ GateTile g() const { return GateTile(memory + GATE); }
    // Factors for each key channel: of the state over the chunk, and of the saved gradient, which is used in the chunk's frame.
    __device__ __forceinline__ u32 decay() const { return memory + DECAY; }
    __device__ __forceinline__ u32 saving() const { return memory + SAVING; }
};

constexpr int TOTALS = STAGES * Stage::BYTES, BARRIERS = TOTALS + Gates::STRIPS * K * 4;
typedef ChunkPipeline<STAGES, PRODUCER_THREADS, CONSUMER_THREADS, BARRIERS> Pipeline;
static_assert(Pipeline::END == SHARED);

__device__ __forceinline__ void prepare(const Stage& stage, float (&decay)[2], float scale, int* plain) {
    int thread = opaque(threadIdx.x);
    Gates::Totals totals(shared_memory() + TOTALS);
    Gates gates(thread);
    gates.sum_up([&](int row, int col) { return load_gates<G>(stage.g(), row, col); });
    gates.store_totals(totals);
    to_bf16<T, PRODUCER_THREADS>(stage.y(), thread);
    Pipeline::sync_producers();
    gates.join(totals);
    bool strong = BACKWARD && Pipeline::any_producer(gates.keys_too_strong());
    if (plain && threadIdx.x == 0) *plain = strong;
    if (gates.row == 0) {
        u32 place = gates.col * 4;
        shared_store(stage.decay() + place, make_float2(pow2(gates.end[0]), pow2(gates.end[1])));
        if (BACKWARD)
            shared_store(stage.saving() + place,
                         strong ? make_float2(1.f, 1.f)
                                : make_float2(pow2(gates.end[0] - gates.middle[0]), pow2(gates.end[1] - gates.middle[1])));
        decay[0] += gates.end[0], decay[1] += gates.end[1];
    }
    float start[2] = {0.f, 0.f};
    if (BACKWARD)
        gates.scale<T>(stage.x(), 1.f, start, scale);
    else
        gates.scale<T>(stage.x(), -1.f, gates.end, scale);
}

__device__ __forceinline__ void produce(const GlaChunkState& p, const Block& block) {
    int value = blockIdx.y * V;
    auto x = block.sequence.rows<Operand>(p.x, block.head / p.x_group);
    auto y = block.sequence.rows<Operand>(p.y, block.head / p.y_group);
    auto g = block.sequence.rows<G>(p.g, block.head / p.shape.group);
    y.first += value;

    auto load = [&](int n) {
        if (n >= block.chunks) return;
        int thread = opaque(threadIdx.x), chunk = BACKWARD ? block.chunks - 1 - n : n;
        int first = (block.first + chunk) * C, rows = block.rows(chunk);
        Stage stage(n);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.g(), g, first, rows, p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.x(), x, first, rows, p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.y(), y, first, rows, p.shape.value_size - value, thread);
    };

    float decay[2] = {0.f, 0.f};
    Pipeline::produce(block.chunks, load, [&](int n) {
        bool saves = BACKWARD && p.plain && value == 0;
        int* plain = saves ? p.plain + block.slot(p.shape.sequences, block.chunks - 1 - n) * p.shape.heads + block.head : nullptr;
        prepare(Stage(n), decay, p.scale, plain);
    });

    Gates gates(threadIdx.x);
    if (p.decay && gates.row == 0 && value == 0)
        for (int c = 0; c < 2; c++)
            if (gates.col + c < p.shape.key_size) p.decay[block.state * p.shape.key_size + gates.col + c] = decay[c];
}

__device__ __forceinline__ void consume(const GlaChunkState& p, const Block& block) {
    int warp = threadIdx.x / 32 - PRODUCERS, lane = threadIdx.x % 32;
    int row = warp * ROW_TILES * 16,
        value = blockIdx.y * V + row; // the warp's first value channel in the tile and in the tensors
    const GlaShape& shape = p.shape;
    i64 state_size = (i64)shape.key_size * shape.value_size;
    TransposedState<ROW_TILES, K> state;
    state.load(p.initial ? p.initial + block.state * state_size : nullptr, shape.key_size, shape.value_size, value, lane);
    i64 saved_size = (i64)gridDim.y * V * (TERMS * K / 2); // pairs of a saved state
    u32* saved = reinterpret_cast<u32*>(p.states) + saved_pair<TERMS * K>(value, 0, lane) +
                 (block.slot(shape.sequences, block.chunks - 1) * shape.heads + block.head) * saved_size;

    for (int n = 0; n < block.chunks; n++, saved -= shape.heads * saved_size) {
        lane = opaque(lane);
        Stage stage(n);
        Pipeline::wait(n);
        if (BACKWARD && p.states) state.save<TERMS>(saved, stage.saving(), lane);
        state.scale(stage.decay(), lane);
#pragma unroll
        for (int j = 0; j < C; j += 16) {
            KeyTile::Fragment a[ROW_TILES];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) load_left_transposed(a[m], stage.y(), j, row + m * 16, lane);
            state.add(a, stage.x(), j, lane);
        }
        Pipeline::release(opaque(n)); // the number alone waits in a register, not the address too
    }

    if (p.local) state.store(p.local + block.state * state_size, shape.key_size, shape.value_size, value, lane);
    if (p.final && block.segment == (BACKWARD ? 0 : shape.segments - 1))
        state.store(p.final + block.sequence_state(shape) * state_size, shape.key_size, shape.value_size, value, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gla_chunk_state(const __grid_constant__ GlaChunkState p) {
    Block block(p.shape, blockIdx.x);
    Pipeline::run<PRODUCER_REGISTERS, CONSUMER_REGISTERS>([&] { produce(p, block); }, [&] { consume(p, block); });
}
