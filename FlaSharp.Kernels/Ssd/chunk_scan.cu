// The state space duality, chunk after chunk of a sequence, the state on the chip.
//
// Dao and Gu 2024 (arXiv:2405.21060), with the state [P x N] in the accumulators of the consumer warps. With a the sums of log2
// decays:
//   y^T = S C^T 2^a + x^T M^T,   S = S 2^(a_end) + (x dt 2^(a_end - a))^T B,   M_ij = (C B^T)_ij 2^(a_i - a_j) dt_j for j <= i
// A head's decay is one number, so it multiplies products: no exponent exceeds 0, whatever the decays, and B and C stay as all
// heads of a group have them. Against time, the gradient of x comes in the same way, from dy instead of x with B and C exchanged:
//   query: C, or B        key: B, or C        input: x, or dy        output: y, or dx        S: the state, or its gradient
// Producer warps load the next chunk and make its M meanwhile.
#include "fla/activation.cuh"
#include "fla/chunk_pipeline.cuh"
#include "fla/pair_rows.cuh"
#include "fla/ssd.cuh"
#include "fla/transposed_state.cuh"
#if HOPPER
#include "fla/wgmma.cuh"
#endif

using namespace fla;

struct SsdChunkScan {
    GlaShape shape;                  // K is N, V is P
    TensorView query, key;           // [B, T, G, N]
    TensorView input, output, gate;  // [B, T, H, P]; the output is multiplied by silu(gate), if there is one
    const float *steps, *sums;       // of ssd_steps
    const float* direct;             // D, or null
    const float* initial;            // [sequences, H, segments, P, N], or null for 0
    float* local;                    // where each segment leads, [sequences, H, segments, P, N]: of states alone
    float* decay;                    // sum of each segment's log2 decays [sequences, H, segments]: of states alone
    float* final;                    // where the last visited segment leads [sequences, H, P, N], or null
    bf16* states;                    // the state before every SPAN tokens, [slots, H, P / 8, N / 8] blocks of 8 x 8; or null
    int direct_head, direct_channel; // strides of D
};

typedef TYPE T;
constexpr int K = KEY_TILE, V = VALUE_TILE, C = CHUNK;
constexpr int PRODUCER_THREADS = 32 * PRODUCERS, CONSUMER_THREADS = 32 * CONSUMERS, THREADS = PRODUCER_THREADS + CONSUMER_THREADS;
constexpr int ROW_TILES = V / 16 / CONSUMERS; // of 16 channels, for each consumer warp
constexpr bool OUTPUTS = !STATES_ONLY;
static_assert(!HOPPER ||
              (ROW_TILES == 1 && V % 64 == 0 && K >= 32 && PRODUCERS % 4 == 0)); // four warps share a product of 64 channels

typedef GlaBlock<C, STEP_CHUNK> Block;
typedef SharedTile<bf16, C, K> KeyTile;
typedef SharedTile<bf16, C, V> ValueTile;
typedef SharedTile<T, C, V> OutputTile;
typedef SharedTile<bf16, C, C> PairTile;

// One chunk on its way. The output takes the place of the queries where it is small enough.
struct Stage {
    static constexpr int KEY = 0, INPUT = KEY + KeyTile::BYTES, QUERY = INPUT + ValueTile::BYTES,
                         PAIRS = QUERY + (OUTPUTS ? KeyTile::BYTES : 0), AFTER_PAIRS = PAIRS + (OUTPUTS ? PairTile::BYTES : 0),
                         OUTPUT = V <= K ? QUERY : AFTER_PAIRS, SUMS = AFTER_PAIRS + (OUTPUTS && V > K ? OutputTile::BYTES : 0),
                         STEPS = SUMS + STEP_CHUNK * 4, OUT_FACTORS = STEPS + STEP_CHUNK * 4, IN_FACTORS = OUT_FACTORS + C * 4,
                         BYTES = SUMS + 1024; // tiles begin at multiples of that
    static_assert(IN_FACTORS + C * 4 <= BYTES && BYTES % 1024 == 0);
    u32 memory;

    __device__ __forceinline__ explicit Stage(int n) : memory(shared_memory() + n % STAGES * BYTES) {}
    __device__ __forceinline__ KeyTile query() const { return KeyTile(memory + QUERY); }
    __device__ __forceinline__ KeyTile key() const { return KeyTile(memory + KEY); }
    __device__ __forceinline__ ValueTile input() const { return ValueTile(memory + INPUT); }
    __device__ __forceinline__ PairTile pairs() const { return PairTile(memory + PAIRS); }
    __device__ __forceinline__ OutputTile output() const { return OutputTile(memory + OUTPUT); }
    // Of the STEP_CHUNK tokens that the chunk is a part of, as ssd_steps left them.
    __device__ __forceinline__ u32 sums() const { return memory + SUMS; }
    __device__ __forceinline__ u32 steps() const { return memory + STEPS; }
    // For each token, the factor on what the state before the chunk gives to its output, and of its input on the way to the state
    // after the chunk.
    __device__ __forceinline__ u32 out_factors() const { return memory + OUT_FACTORS; }
    __device__ __forceinline__ u32 in_factors() const { return memory + IN_FACTORS; }
    // The state's own factor is that of the token that the state before reaches last, or the input that has the longest way.
    __device__ __forceinline__ float decay() const {
        return shared_load<float>((BACKWARD ? in_factors() : out_factors()) + (C - 1) * 4);
    }
};

typedef ChunkPipeline<STAGES, PRODUCER_THREADS, CONSUMER_THREADS, STAGES * Stage::BYTES> Pipeline;
static_assert(Pipeline::END == SHARED);

// The chunk of the segment that is visited as number `n`.
__device__ __forceinline__ int visited(const Block& block, int n) { return BACKWARD ? block.chunks - 1 - n : n; }

// Whether the state before that chunk is saved: it is the first one visited of a span.
__device__ __forceinline__ bool saves(const SsdChunkScan& p, const Block& block, int n) {
    int chunk = block.first + visited(block, n);
    bool last_of_sequence = (chunk + 1) * C >= block.sequence.length;
    return p.states && (BACKWARD ? (chunk + 1) % (SPAN / C) == 0 || last_of_sequence : chunk % (SPAN / C) == 0);
}

__device__ __forceinline__ void prepare(const Stage& stage, int offset, float& decay) {
    int thread = opaque(threadIdx.x);
    u32 sums = stage.sums() + offset * 4, steps = stage.steps() + offset * 4;
    if constexpr (!same<T, bf16>()) {
        to_bf16<T, PRODUCER_THREADS>(stage.key(), thread);
        to_bf16<T, PRODUCER_THREADS>(stage.input(), thread);
        if (OUTPUTS) to_bf16<T, PRODUCER_THREADS>(stage.query(), thread);
        Pipeline::sync_producers();
    }
    float before = offset > 0 ? shared_load<float>(sums - 4) : 0.f, all = shared_load<float>(sums + (C - 1) * 4) - before;
    decay += all;
    if (thread < C) {
        float sum = shared_load<float>(sums + thread * 4) - before, step = shared_load<float>(steps + thread * 4);
        shared_store(stage.out_factors() + thread * 4, BACKWARD ? pow2(all - sum) * step : pow2(sum));
        shared_store(stage.in_factors() + thread * 4, BACKWARD ? pow2(sum) : pow2(all - sum) * step);
    }
    if constexpr (OUTPUTS) {
        PairRows<C, PRODUCERS> pairs(thread / 32, thread % 32);
        if (!pairs.exist()) return;
        if (BACKWARD)
            pairs.multiply_all(stage.query(), stage.key());
        else
            pairs.multiply(stage.query(), stage.key());
#pragma unroll
        for (int e = 0; e < 4; e += 2) { // rows of queries
            float sum_i = shared_load<float>(sums + pairs.row(e) * 4), step_i = shared_load<float>(steps + pairs.row(e) * 4);
#pragma unroll
            for (int j = 0; j < pairs.BLOCKS; j++)
#pragma unroll
                for (int half = 0; half < 8; half += 4) {
                    int col = pairs.col(j, half);
                    float2 sum_j = shared_load<float2>(sums + col * 4), step_j = shared_load<float2>(steps + col * 4);
                    float from[2] = {sum_j.x, sum_j.y}, step[2] = {step_j.x, step_j.y};
#pragma unroll
                    for (int c = 0; c < 2; c++) {
                        int i = pairs.row(e);
                        float& product = pairs.sum[j][half / 4][e + c];
                        bool kept = BACKWARD ? col + c >= i : col + c <= i;
                        product =
                            kept ? product * pow2(BACKWARD ? from[c] - sum_i : sum_i - from[c]) * (BACKWARD ? step_i : step[c])
                                 : 0.f;
                    }
                }
        }
        pairs.store(stage.pairs());
    }
}

__device__ __forceinline__ void produce(const SsdChunkScan& p, const Block& block) {
    auto load = [&](int n) {
        if (n >= block.chunks) return;
        int thread = opaque(threadIdx.x), head = opaque(block.head), group = head / p.shape.group, value = blockIdx.y * V;
        int chunk = visited(block, n), first = (block.first + chunk) * C, rows = block.rows(chunk);
        Stage stage(n);
        i64 slot = (block.slot(p.shape.sequences, chunk) * p.shape.heads + head) * STEP_CHUNK;
        if (thread < STEP_CHUNK / 2) {
            bool first_half = thread < STEP_CHUNK / 4;
            int place = thread % (STEP_CHUNK / 4) * 4;
            copy_async<16>((first_half ? stage.sums() : stage.steps()) + place * 4,
                           (first_half ? p.sums : p.steps) + slot + place, true);
        }
        auto input = block.sequence.rows<bf16>(p.input, head);
        input.first += value;
        load_tile<VECTOR, PRODUCER_THREADS>(stage.key(), block.sequence.rows<bf16>(p.key, group), first, rows, p.shape.key_size,
                                            thread);
        if (OUTPUTS)
            load_tile<VECTOR, PRODUCER_THREADS>(stage.query(), block.sequence.rows<bf16>(p.query, group), first, rows,
                                                p.shape.key_size, thread);
        load_tile<VECTOR, PRODUCER_THREADS>(stage.input(), input, first, rows, p.shape.value_size - value, thread);
    };

    float decay = 0.f;
    Pipeline::produce(block.chunks, load, [&](int n) {
        prepare(Stage(n), (block.first + visited(block, n)) * C % STEP_CHUNK, decay);
#if HOPPER
        fence_for_products();
#endif
    });
    if (STATES_ONLY && threadIdx.x == 0 && blockIdx.y == 0) p.decay[block.state] = decay;
}

typedef TransposedState<ROW_TILES, K> State;

// Visits (the accumulator, whether it exists, its place in a state [P, N]); `value` is the warp's first channel.
template <class Visit>
__device__ __forceinline__ void visit(State& state, const GlaShape& shape, int value, int lane, Visit visit) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int n = 0; n < K / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int k = n * 8 + lane % 4 * 2 + e % 2, v = value + m * 16 + lane / 4 + e / 2 * 8;
                visit(state.sum[m][n][e], k < shape.key_size && v < shape.value_size, (i64)v * shape.key_size + k);
            }
}

__device__ __forceinline__ void store_state(State& state, float* to, const GlaShape& shape, int value, int lane) {
    visit(state, shape, value, lane, [=](float& x, bool exists, i64 place) {
        if (exists) to[place] = x;
    });
}

// Multiplies what this lane will store of COLS columns from `col` on, as store_tile does, by silu(gate).
template <int COLS, class Tile>
__device__ __forceinline__ void apply_gate(const SsdChunkScan& p, const Block& block, const Tile& tile, int col, int first,
                                           int rows, int value, int lane) {
    constexpr int ACROSS = COLS / 8, DOWN = 32 / ACROSS;
    auto gate = block.sequence.rows<T>(p.gate, block.head);
    int piece = lane % ACROSS * 8, left = p.shape.value_size - value - piece;
    for (int t = lane / ACROSS; t < rows && t < Tile::ROWS && left > 0; t += DOWN) {
        const T* from = gate[first + t] + value + piece;
        u32 place = tile.at(t, col + piece);
        for (int c = 0; c < min(8, left); c++) {
            float z = to_float(from[c]), y = to_float(shared_load<T>(place + c * 2));
            shared_store(place + c * 2, from_float<T>(y * Silu(z).value));
        }
    }
}

// A left operand of 16 tokens from `j` on, times their factors.
__device__ __forceinline__ void scale_left(u32 (&a)[4], u32 factors, int j, int lane) {
    factors += (j + lane % 4 * 2) * 4;
    float2 by[2] = {shared_load<float2>(factors), shared_load<float2>(factors + 8 * 4)};
#pragma unroll
    for (int e = 0; e < 4; e++)
        a[e] = Pair<bf16>::pack(Pair<bf16>::low(a[e]) * by[e / 2].x, Pair<bf16>::high(a[e]) * by[e / 2].y);
}

// Adds D times the inputs of 16 tokens, a left operand, whose registers lie as the accumulators do.
__device__ __forceinline__ void add_direct(float (&first)[4], float (&second)[4], const float (&direct)[2], const u32 (&a)[4]) {
#pragma unroll
    for (int e = 0; e < 4; e++) {
        float(&out)[4] = e < 2 ? first : second;
        out[e % 2 * 2] += direct[e % 2] * Pair<bf16>::low(a[e]);
        out[e % 2 * 2 + 1] += direct[e % 2] * Pair<bf16>::high(a[e]);
    }
}

// What the state before the chunk gives to the outputs of each token, times its factor.
__device__ __forceinline__ void scale_outputs(float (&out)[ROW_TILES][C / 8][4], u32 factors, int lane) {
#pragma unroll
    for (int t = 0; t < C / 8; t++) {
        float2 by = shared_load<float2>(factors + (t * 8 + lane % 4 * 2) * 4);
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) {
            out[m][t][0] *= by.x, out[m][t][1] *= by.y;
            out[m][t][2] *= by.x, out[m][t][3] *= by.y;
        }
    }
}

__device__ __forceinline__ void scale_state(State& state, float decay) {
#pragma unroll
    for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
        for (int k = 0; k < K / 8; k++)
#pragma unroll
            for (int e = 0; e < 4; e++) state.sum[m][k][e] *= decay;
}

#if HOPPER
// The outputs of a warp's channels with pairs taken one by one: `left` is the state before the chunk.
__device__ __forceinline__ void output_one_by_one(float (&out)[1][C / 8][4], const u32 (&left)[K / 16][4], const Stage& stage,
                                                  const float (&direct)[2], int row, int lane) {
#pragma unroll
    for (int t = 0; t < C; t += 16) {
#pragma unroll
        for (int e = 0; e < 4; e++) out[0][t / 8][e] = out[0][t / 8 + 1][e] = 0.f;
#pragma unroll
        for (int k = 0; k < K; k += 16) {
            u32 b[4];
            load_right_transposed(b, stage.query(), t, k, lane);
            mma_16x16(out[0][t / 8], out[0][t / 8 + 1], left[k / 16], b);
        }
    }
    scale_outputs(out, stage.out_factors(), lane);
#pragma unroll 1
    for (int j = 0; j < C; j++) {
        float x[2];
#pragma unroll
        for (int half = 0; half < 2; half++)
            x[half] = to_float(shared_load<bf16>(stage.input().at(j, row + half * 8 + lane / 4)));
#pragma unroll
        for (int n = 0; n < C / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int t = n * 8 + lane % 4 * 2 + e % 2;
                if (BACKWARD ? j >= t : j <= t) out[0][n][e] += to_float(shared_load<bf16>(stage.pairs().at(t, j))) * x[e / 2];
                if (j == t) out[0][n][e] += direct[e / 2] * x[e / 2];
            }
    }
}

// The consumers' work on chunk `n`: its output, and the state after it. `row` is the warp's first channel in the tiles, `direct`
// its D.
__device__ __forceinline__ void advance(const SsdChunkScan& p, const Block& block, const Stage& stage, int n, State& state,
                                        const float (&direct)[ROW_TILES][2], int row, int& lane) {
    constexpr int GROUP = 128;                      // threads that share products
    int first = row / 64 * 64, warp = row / 16 % 4; // the group's first channel, the warp in the group
    float out[1][C / 8][4] = {};
    float(&sum)[K / 8][4] = state.sum[0];
    u32 left[K / 16][4], inputs[C / 16][4];
    if constexpr (OUTPUTS) {
#pragma unroll
        for (int k = 0; k < K; k += 16) pack_left(left[k / 16], sum[k / 8], sum[k / 8 + 1]);
        begin_products(out[0], left);
#pragma unroll
        for (int k = 0; k < K; k += 16) product<0>(out[0], left[k / 16], operand(stage.query(), 0, k)); // out^T = S query^T
        commit_products();
    }
#pragma unroll
    for (int j = 0; j < C; j += 16) load_left_transposed(inputs[j / 16], stage.input(), j, row, lane);
    scale_state(state, stage.decay());
    if constexpr (OUTPUTS) {
        wait_products<0>(out[0], left);
        scale_outputs(out, stage.out_factors(), lane);
        if (p.direct)
#pragma unroll
            for (int j = 0; j < C; j += 16) add_direct(out[0][j / 8], out[0][j / 8 + 1], direct[0], inputs[j / 16]);
        begin_products(out[0]);
#pragma unroll
        for (int j = 0; j < C; j += 16) // out^T += input^T M^T
            product<1, 0>(out[0], operand_transposed(stage.input(), j, first), operand(stage.pairs(), 0, j));
        commit_products();
    }
#pragma unroll
    for (int j = 0; j < C; j += 16) scale_left(inputs[j / 16], stage.in_factors(), j, lane);
    begin_products(sum, inputs);
#pragma unroll
    for (int j = 0; j < C; j += 16)
        product<1>(sum, inputs[j / 16], operand_transposed(stage.key(), j, 0)); // S += (input scaled)^T key
    commit_products();

    if constexpr (OUTPUTS) {
        wait_products<1>(out[0]);
        // A value that is not finite made its channel NaN all over the chunk: a product with the 0 of other pairs reaches all its
        // tokens.
        if (!__all_sync(~0u, isfinite(out[0][0][0]) && isfinite(out[0][0][2])))
            output_one_by_one(out, left, stage, direct[0], row, lane);
        if (Stage::OUTPUT == Stage::QUERY) Pipeline::sync_consumers(); // the queries are read
#pragma unroll
        for (int t = 0; t < C; t += 16) {
            u32 pairs[4];
#pragma unroll
            for (int e = 0; e < 4; e++)
                pairs[e] = Pair<T>::pack(out[0][t / 8 + e / 2][e % 2 * 2], out[0][t / 8 + e / 2][e % 2 * 2 + 1]);
            stmatrix_x4_trans(stage.output().at(t + lane / 16 * 8 + lane % 8, row + (lane & 8)), pairs);
        }
        Pipeline::sync_group(row / 64, GROUP);
        constexpr int ROWS = C / 4; // of the output, for each warp: whole lines
        typedef SharedTile<T, ROWS, OutputTile::PANEL> Lines;
        Lines lines(stage.output().base + first / 64 * (C * Lines::PITCH) + warp * Lines::BYTES);
        int chunk = visited(block, n), token = (block.first + chunk) * C + warp * ROWS, rows = block.rows(chunk) - warp * ROWS;
        int value = blockIdx.y * V + first;
        if (p.gate.data) apply_gate<64>(p, block, lines, 0, token, rows, value, lane);
        store_tile<VECTOR, 64>(lines, 0, block.sequence.rows<T>(p.output, opaque(block.head)), token, rows, value,
                               p.shape.value_size, lane);
    }
    wait_products<0>(sum, inputs);
}
#else
// out^T += a y^T with 16 columns of y [C x ..] from `col` on, its rows from `first` up to `end`.
template <class Tile>
__device__ __forceinline__ void add(float (&out)[ROW_TILES][C / 8][4], const u32 (&a)[ROW_TILES][4], const Tile& y, int first,
                                    int end, int col, int lane) {
    constexpr int BATCH = C < 32 ? 1 : 2; // loads under way at once
#pragma unroll
    for (int t = 0; t < C; t += 16 * BATCH) {
        u32 b[BATCH][4];
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (t + i * 16 >= first && t + i * 16 < end) load_right_transposed(b[i], y, t + i * 16, col, lane);
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (t + i * 16 >= first && t + i * 16 < end)
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) mma_16x16(out[m][t / 8 + 2 * i], out[m][t / 8 + 2 * i + 1], a[m], b[i]);
    }
}

// The same with the products of single warps.
__device__ __forceinline__ void advance(const SsdChunkScan& p, const Block& block, const Stage& stage, int n, State& state,
                                        const float (&direct)[ROW_TILES][2], int row, int& lane) {
    float out[ROW_TILES][C / 8][4] = {};
    if constexpr (OUTPUTS) {
#pragma unroll
        for (int k = 0; k < K; k += 16) { // out^T = S query^T
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int m = 0; m < ROW_TILES; m++) pack_left(a[m], state.sum[m][k / 8], state.sum[m][k / 8 + 1]);
            add(out, a, stage.query(), 0, C, k, lane);
        }
        scale_outputs(out, stage.out_factors(), lane);
    }
    scale_state(state, stage.decay());
#pragma unroll
    for (int j = 0; j < C; j += 16) { // out^T += input^T M^T, S += (input scaled)^T key
        lane = opaque(lane);
        u32 a[ROW_TILES][4];
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) load_left_transposed(a[m], stage.input(), j, row + m * 16, lane);
        if constexpr (OUTPUTS) {
            add(out, a, stage.pairs(), BACKWARD ? 0 : j, BACKWARD ? j + 16 : C, j, lane);
            if (p.direct)
#pragma unroll
                for (int m = 0; m < ROW_TILES; m++) add_direct(out[m][j / 8], out[m][j / 8 + 1], direct[m], a[m]);
        }
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++) scale_left(a[m], stage.in_factors(), j, lane);
        state.add(a, stage.key(), j, lane);
    }
    if constexpr (OUTPUTS) {
        if (Stage::OUTPUT == Stage::QUERY) Pipeline::sync_consumers(); // the queries are read
#pragma unroll
        for (int m = 0; m < ROW_TILES; m++)
#pragma unroll
            for (int t = 0; t < C; t += 8)
#pragma unroll
                for (int e = 0; e < 2; e++)
                    shared_store(stage.output().at(t + lane / 4, row + m * 16 + e * 8 + lane % 4 * 2),
                                 transpose_8x8(Pair<T>::pack(out[m][t / 8][e * 2], out[m][t / 8][e * 2 + 1])));
        __syncwarp();
        int chunk = visited(block, n), token = (block.first + chunk) * C, value = blockIdx.y * V + row;
        if (p.gate.data) apply_gate<ROW_TILES * 16>(p, block, stage.output(), row, token, block.rows(chunk), value, lane);
        store_tile<VECTOR, ROW_TILES * 16>(stage.output(), row, block.sequence.rows<T>(p.output, opaque(block.head)), token,
                                           block.rows(chunk), value, p.shape.value_size, lane);
    }
}
#endif

__device__ __forceinline__ void consume(const SsdChunkScan& p, const Block& block) {
    int warp = threadIdx.x / 32 - PRODUCERS, lane = threadIdx.x % 32;
    int row = warp * ROW_TILES * 16, value = blockIdx.y * V + row; // the warp's first channel in the tiles and in the tensors
    const GlaShape& shape = p.shape;
    i64 state_size = (i64)shape.key_size * shape.value_size;
    const float* initial = p.initial ? p.initial + block.state * state_size : nullptr;
    State state;
    visit(state, shape, value, lane, [=](float& x, bool exists, i64 place) { x = initial && exists ? initial[place] : 0.f; });

    float direct[ROW_TILES][2] = {}; // of the lane's channels
    if (OUTPUTS && p.direct)
#pragma unroll
        for (int m = 0; m < ROW_TILES * 2; m++) {
            int channel = value + m * 8 + lane / 4;
            direct[m / 2][m % 2] =
                channel < shape.value_size ? p.direct[(i64)block.head * p.direct_head + channel * p.direct_channel] : 0.f;
        }

    for (int n = 0; n < block.chunks; n++) {
        lane = opaque(lane);
        Stage stage(n);
        Pipeline::wait(n);
        if (OUTPUTS && saves(p, block, n)) {
            i64 slot =
                span_slot(shape.sequences, block.sequence, (block.first + visited(block, n)) * C / STEP_CHUNK) * shape.heads +
                opaque(block.head);
            u32* saved = reinterpret_cast<u32*>(p.states) + slot * gridDim.y * V * (K / 2) + saved_pair<K>(value, 0, lane);
#pragma unroll
            for (int k = 0; k < K / 8; k++)
#pragma unroll
                for (int m = 0; m < ROW_TILES * 2; m++)
                    saved[saved_pair<K>(m * 8, k * 8, 0)] =
                        Pair<bf16>::pack(state.sum[m / 2][k][m % 2 * 2], state.sum[m / 2][k][m % 2 * 2 + 1]);
        }

        advance(p, block, stage, n, state, direct, row, lane);
        Pipeline::release(n);
    }

    if (STATES_ONLY) store_state(state, p.local + block.state * state_size, shape, value, lane);
    if (OUTPUTS && p.final && block.segment == (BACKWARD ? 0 : shape.segments - 1))
        store_state(state, p.final + block.sequence_state(shape) * state_size, shape, value, lane);
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) ssd_chunk_scan(const __grid_constant__ SsdChunkScan p) {
    Block block(p.shape, blockIdx.x);
    Pipeline::run<PRODUCER_REGISTERS, CONSUMER_REGISTERS, MIN_BLOCKS>([&] { produce(p, block); }, [&] { consume(p, block); });
}
