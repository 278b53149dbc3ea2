// Gradients of B and C, summed over the heads that share them, and what the step sizes' gradient is made of.
//
// A block has the 64 tokens of a chunk, a slice of N, and the heads of a group one after the other. With S the state before the
// span of two chunks that the chunk is in, dS the gradient of the state after it, and a the sums of log2 decays from the span's
// beginning on:
//   dC = dY S 2^a + W B,   dB = X dS 2^(a_end - a) dt + W^T C,   W_ij = (dY X^T)_ij 2^(a_i - a_j) dt_j for j <= i, all summed
//   over heads
// W is multiplied once, at the end. Of its elements, half lie between the chunk's own tokens, the others (between those of both
// chunks) are made by either chunk's block: states saved every other chunk are worth it.
#include "fla/pair_rows.cuh"
#include "fla/ssd.cuh"
#include "fla/warp_tile.cuh"

using namespace fla;

struct SsdChunkBackward {
    GlaShape shape;            // K is N, V is P; its heads are sets of them, its segments are chunks
    TensorView b, c;           // [B, T, G, N]
    TensorView x, grad_output; // [B, T, H, P]
    TensorView grad_b, grad_c; // float32 [B, T, sets, N]
    const float *steps, *sums; // of ssd_steps
    const bf16* states;        // the state before each span, [slots, H, state_values / 8, state_keys / 8] blocks of 8 x 8
    const bf16* state_grads;   // the gradient after each span
    float4* tokens;            // for ssd_steps_backward: [slices, slots, H, STEP_CHUNK]
    float* products;           // of the states and their gradients, [slices, slots, H]
    i64 slots;                 // times H
    int state_values, state_keys;
    int heads, group, set, sets; // H; heads of a group; heads of a set, of which a group has so many
};

typedef TYPE T;
constexpr int C = STEP_CHUNK, K = KEY_TILE, V = VALUE_TILE; // slices of N and P in shared memory at once
constexpr int WARPS = BACKWARD_WARPS, THREADS = 32 * WARPS;

typedef SharedTile<bf16, C, K> KeyTile;
typedef SharedTile<bf16, C, V> ValueTile;
typedef SharedTile<bf16, C, C> PairTile;
typedef WarpTile<C, K, WARPS> KeyGrad;
typedef PairRows<C, WARPS> Pairs;

// A slice of a saved state, blocks of 8 x 8.
struct StateTile {
    static constexpr int BYTES = V * K * 2;
    u32 base;
    __device__ __forceinline__ u32 at(int value, int key) const {
        return base + ((value >> 3) * (K / 8) + (key >> 3)) * 128 + (value & 7) * 16 + (key & 7) * 2;
    }
    static __device__ __forceinline__ u32 step(u32 address, int value, int key) {
        return address + value * (K / 8 * 16) + key * 16; // both multiples of 8
    }
};

// What a head, or a slice of its channels, needs. `other` is what the pairs between both chunks take from the other one.
struct Stage {
    static constexpr int X = 0, GRAD_OUTPUT = X + ValueTile::BYTES, OTHER = GRAD_OUTPUT + ValueTile::BYTES,
                         STATE = OTHER + ValueTile::BYTES, STATE_GRAD = STATE + StateTile::BYTES,
                         SUMS = STATE_GRAD + StateTile::BYTES, STEPS = SUMS + C * 4, OTHER_SUMS = STEPS + C * 4,
                         OTHER_STEPS = OTHER_SUMS + C * 4, BYTES = OTHER_STEPS + C * 4;
    u32 memory;

    __device__ __forceinline__ explicit Stage(int n) : memory(shared_memory() + n % STAGES * BYTES) {}
    __device__ __forceinline__ ValueTile x() const { return ValueTile(memory + X); }
    __device__ __forceinline__ ValueTile grad_output() const { return ValueTile(memory + GRAD_OUTPUT); }
    __device__ __forceinline__ ValueTile other() const { return ValueTile(memory + OTHER); }
    __device__ __forceinline__ StateTile state() const { return {memory + STATE}; }
    __device__ __forceinline__ StateTile state_grad() const { return {memory + STATE_GRAD}; }
    __device__ __forceinline__ float sum(int t) const { return shared_load<float>(memory + SUMS + t * 4); }
    __device__ __forceinline__ float step(int t) const { return shared_load<float>(memory + STEPS + t * 4); }
    __device__ __forceinline__ float other_sum(int t) const { return shared_load<float>(memory + OTHER_SUMS + t * 4); }
};

// Before there are heads, and when there are none left, their memory holds the other chunk's B or C, and W.
constexpr int OTHER_KEYS = 0, OWN_PAIRS = OTHER_KEYS + KeyTile::BYTES, OTHER_PAIRS = OWN_PAIRS + PairTile::BYTES;
constexpr int HEADS_BYTES =
    STAGES * Stage::BYTES > OTHER_PAIRS + PairTile::BYTES ? STAGES* Stage::BYTES : OTHER_PAIRS + PairTile::BYTES;
constexpr int B = HEADS_BYTES, GRAD_KEYS = B + KeyTile::BYTES;
// Sums over the pairs of a row or a column, one for each warp that has a part of these; and of products with B and C.
constexpr int ROWS = GRAD_KEYS + KeyTile::BYTES, COLS = ROWS + Pairs::ACROSS * C * 4, DIAGONAL = COLS + Pairs::DOWN * C * 4,
              DIRECT = DIAGONAL + C * 4, INTO = DIRECT + C * 4, FROM = INTO + KeyGrad::COL_WARPS * C * 4,
              PRODUCTS = FROM + KeyGrad::COL_WARPS * C * 4, END_OF_SHARED = PRODUCTS + WARPS * 4;
static_assert(END_OF_SHARED == SHARED);

// The block's chunk, the other one of its span, and its heads.
struct Chunk {
    GlaBlock<C, STEP_CHUNK> block;
    bool second; // of the span
    int first, rows, other_first, other_rows;
    int group, head, heads; // the first head, and how many there are
    i64 slot, other_slot, span;

    __device__ __forceinline__ explicit Chunk(const SsdChunkBackward& p)
        : block(p.shape, blockIdx.x),
          second(block.first % 2),
          first(block.first * C),
          rows(block.rows(0)),
          other_first(second ? first - C : first + C),
          other_rows(max(0, min(C, block.sequence.length - other_first))),
          group(block.head / p.sets),
          head(group * p.group + block.head % p.sets * p.set),
          heads(min(p.set, (group + 1) * p.group - head)),
          slot(block.slot(p.shape.sequences, 0) * p.heads),
          other_slot(slot + (second ? -p.heads : p.heads)),
          span(span_slot(p.shape.sequences, block.sequence, block.first) * p.heads) {}

    template <class X>
    __device__ __forceinline__ Rows<X> rows_of(const TensorView& view, int head) const {
        return block.sequence.template rows<X>(view, head);
    }
};

template <class Tile>
__device__ __forceinline__ void load(const Chunk& chunk, const Tile& tile, const TensorView& view, int head, int col, int size,
                                     bool of_other) {
    auto rows = chunk.rows_of<bf16>(view, head);
    rows.first += col;
    load_tile<VECTOR, THREADS>(tile, rows, of_other ? chunk.other_first : chunk.first, of_other ? chunk.other_rows : chunk.rows,
                               size - col, opaque(threadIdx.x));
}

__device__ __forceinline__ void load_state(const SsdChunkBackward& p, const StateTile& tile, const bf16* states, i64 slot,
                                           int value) {
    const bf16* from = states + (slot * p.state_values + value) * p.state_keys + blockIdx.y * K * 8;
#pragma unroll
    for (int i = 0; i < (StateTile::BYTES / 16 + THREADS - 1) / THREADS; i++) {
        int piece = i * THREADS + opaque(threadIdx.x);
        if (piece < StateTile::BYTES / 16)
            copy_async<16>(tile.base + piece * 16, from + (i64)(piece / K) * p.state_keys * 8 + piece % K * 8, true);
    }
}

// Begins to copy slice `n` of the heads' channels, and does nothing for one that does not exist.
__device__ __forceinline__ void load(const SsdChunkBackward& p, const Chunk& chunk, int n, int slices) {
    if (n >= chunk.heads * slices) return;
    int head = chunk.head + n / slices, value = n % slices * V, thread = opaque(threadIdx.x);
    Stage stage(n);
    if (thread < C) { // four vectors of C
        int place = thread % (C / 4) * 4;
        bool other = thread >= C / 2, exists = !other || chunk.other_rows > 0;
        const float* vectors = thread / (C / 4) % 2 ? p.steps : p.sums;
        const float* from = vectors + ((exists && other ? chunk.other_slot : chunk.slot) + head) * C + place;
        copy_async<16>(stage.memory + Stage::SUMS + thread * 16, from, exists);
    }
    load(chunk, stage.grad_output(), p.grad_output, head, value, p.shape.value_size, false);
    load(chunk, stage.x(), p.x, head, value, p.shape.value_size, false);
    load(chunk, stage.other(), chunk.second ? p.x : p.grad_output, head, value, p.shape.value_size, true);
    load_state(p, stage.state(), p.states, chunk.span + head, value);
    load_state(p, stage.state_grad(), p.state_grads, chunk.span + head, value);
}

// C B^T of the pairs, as packed bfloat16.
struct Scores {
    u32 packed[Pairs::BLOCKS][2][2];

    __device__ __forceinline__ void set(const Pairs& pairs) {
#pragma unroll
        for (int j = 0; j < Pairs::BLOCKS; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                packed[j][e / 2][e % 2] = Pair<bf16>::pack(pairs.sum[j][e / 2][e % 2 * 2], pairs.sum[j][e / 2][e % 2 * 2 + 1]);
    }
    __device__ __forceinline__ float at(int j, int e) const {
        u32 pair = packed[j][e / 4][e % 4 / 2];
        return e % 2 ? Pair<bf16>::high(pair) : Pair<bf16>::low(pair);
    }
};

// Sums over a head's pairs of different tokens, of this thread's rows and columns; those of the rows with step sizes.
struct PairSums {
    float rows[2], cols[Pairs::BLOCKS][4];

    __device__ __forceinline__ void store(const Pairs& pairs, u32 memory) {
        int across = pairs.first / Pairs::BLOCKS;
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int mask = 1; mask < 4; mask *= 2) rows[h] += __shfl_xor_sync(~0u, rows[h], mask);
            if (pairs.lane % 4 == 0) shared_store(memory + ROWS + (across * C + pairs.row(h * 2)) * 4, rows[h]);
        }
#pragma unroll
        for (int j = 0; j < Pairs::BLOCKS; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
#pragma unroll
                for (int mask = 4; mask < 32; mask *= 2) cols[j][c] += __shfl_xor_sync(~0u, cols[j][c], mask);
                if (pairs.lane < 4)
                    shared_store(memory + COLS + (pairs.block * C + pairs.col(j, c / 2 * 4 + c % 2)) * 4, cols[j][c]);
            }
    }
};

// From dY X^T of a head's pairs, which becomes 0 again, to W and the sums: decays, step sizes and scores. The sums of decays and
// the step sizes of rows and columns lie in shared memory, `between` is the decay between the chunks of both.
template <bool TRIANGLE, bool BY_ROWS, bool BY_COLS>
__device__ __forceinline__ void add_pairs(Pairs& gradient, Pairs& weights, PairSums& sums, const Scores& scores, u32 row_sums,
                                          u32 col_sums, u32 col_steps, float between) {
    float to[2] = {shared_load<float>(row_sums + gradient.row(0) * 4) + between,
                   shared_load<float>(row_sums + gradient.row(2) * 4) + between};
#pragma unroll
    for (int j = 0; j < Pairs::BLOCKS; j++)
#pragma unroll
        for (int half = 0; half < 8; half += 4) {
            int col = gradient.col(j, half);
            float2 sum = shared_load<float2>(col_sums + col * 4), step = shared_load<float2>(col_steps + col * 4);
#pragma unroll
            for (int e = half; e < half + 4; e++) {
                float& x = gradient.sum[j][e / 4][e % 4];
                float decayed = x * pow2(to[e % 4 / 2] - (e % 2 ? sum.y : sum.x));
                if (TRIANGLE) decayed = col + e % 2 < gradient.row(e) ? decayed : 0.f;
                float product = scores.at(j, e) * decayed, weight = e % 2 ? step.y : step.x;
                if (BY_ROWS) sums.rows[e % 4 / 2] += product * weight;
                if (BY_COLS) sums.cols[j][half / 2 + e % 2] += product;
                weights.sum[j][e / 4][e % 4] += decayed * weight;
                if (!TRIANGLE) x = 0.f; // else the diagonal is still needed
            }
        }
}

// The pairs (t, t), which do not decay: their own sums, and their part of W.
__device__ __forceinline__ void add_diagonal(Pairs& gradient, Pairs& weights, const Scores& scores, u32 steps, u32 memory) {
#pragma unroll
    for (int j = 0; j < Pairs::BLOCKS; j++) {
#pragma unroll
        for (int e = 0; e < 8; e++) {
            float& x = gradient.sum[j][e / 4][e % 4];
            if (e % 4 / 2 == e / 4 && gradient.row(e) == gradient.col(j, e)) {
                u32 place = gradient.row(e) * 4;
                shared_store(memory + DIAGONAL + place, x);
                shared_store(memory + DIRECT + place, x * scores.at(j, e));
                weights.sum[j][e / 4][e % 4] += x * shared_load<float>(steps + place);
            }
            x = 0.f;
        }
    }
}

// sum += product, its rows times their factors; dots += the products of the rows with those of `tile`.
template <class Factor>
__device__ __forceinline__ void fold(KeyGrad& sum, const KeyGrad& product, const KeyTile& tile,
                                     float (&dots)[KeyGrad::ROW_TILES * 2], Factor factor) {
    if (!sum.exists()) return;
    u32 top = tile.at(sum.row + sum.lane / 4, sum.col + sum.lane % 4 * 2);
#pragma unroll
    for (int m = 0; m < KeyGrad::ROW_TILES * 2; m++) {
        float by = factor(sum.row + m * 8 + sum.lane / 4);
#pragma unroll
        for (int n = 0; n < KeyGrad::COL_TILES * 2; n++) {
            u32 pair = shared_load<u32>(KeyTile::step(top, m * 8, n * 8));
            float x = product.sum[m / 2][n][m % 2 * 2], y = product.sum[m / 2][n][m % 2 * 2 + 1];
            dots[m] += Pair<bf16>::low(pair) * x;
            dots[m] += Pair<bf16>::high(pair) * y;
            sum.sum[m / 2][n][m % 2 * 2] += by * x;
            sum.sum[m / 2][n][m % 2 * 2 + 1] += by * y;
        }
    }
}

__device__ __forceinline__ void store_dots(const KeyGrad& sum, float (&dots)[KeyGrad::ROW_TILES * 2], u32 memory) {
    if (!sum.exists()) return;
#pragma unroll
    for (int m = 0; m < KeyGrad::ROW_TILES * 2; m++) {
#pragma unroll
        for (int mask = 1; mask < 4; mask *= 2) dots[m] += __shfl_xor_sync(~0u, dots[m], mask);
        if (sum.lane % 4 == 0)
            shared_store(memory + (sum.col / (KeyGrad::COL_TILES * 16) * C + sum.row + m * 8 + sum.lane / 4) * 4, dots[m]);
    }
}

// Adds to the product of a state and its gradient, over this thread's part of the slice. The blocks of both chunks have a half
// each.
__device__ __forceinline__ float product_of_states(const Chunk& chunk, const Stage& stage) {
    constexpr int PIECES = V * K / 8;
    bool shared = chunk.other_rows > 0;
    float product = 0.f;
    for (int piece = (shared && chunk.second ? PIECES / 2 : 0) + threadIdx.x;
         piece < (shared && !chunk.second ? PIECES / 2 : PIECES); piece += THREADS) {
        uint4 x = shared_load<uint4>(stage.state().base + piece * 16),
              y = shared_load<uint4>(stage.state_grad().base + piece * 16);
        u32 xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            product += Pair<bf16>::low(xs[i]) * Pair<bf16>::low(ys[i]);
            product += Pair<bf16>::high(xs[i]) * Pair<bf16>::high(ys[i]);
        }
    }
    return product;
}

// The sum of COUNT vectors of C in shared memory, for one token.
template <int COUNT>
__device__ __forceinline__ float total(u32 vectors, int t) {
    float sum = 0.f;
#pragma unroll
    for (int i = 0; i < COUNT; i++) sum += shared_load<float>(vectors + (i * C + t) * 4);
    return sum;
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) ssd_chunk_backward(const __grid_constant__ SsdChunkBackward p) {
    Chunk chunk(p);
    if (chunk.block.chunks == 0 || chunk.heads <= 0) return;
    u32 memory = shared_memory();
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, slices = (p.shape.value_size + V - 1) / V;
    KeyTile b(memory + B), c(memory + GRAD_KEYS), other_keys(memory + OTHER_KEYS);

    Scores own_scores, other_scores;
    {
        Pairs own(warp, lane), other(warp, lane);
        int key_slices = (p.shape.key_size + K - 1) / K;
        for (int s = 1; s <= key_slices; s++) { // the block's own slice last: it stays
            int key = (blockIdx.y + s) % key_slices * K;
            load(chunk, b, p.b, chunk.group, key, p.shape.key_size, false);
            load(chunk, c, p.c, chunk.group, key, p.shape.key_size, false);
            load(chunk, other_keys, chunk.second ? p.b : p.c, chunk.group, key, p.shape.key_size, true);
            copy_async_commit();
            copy_async_wait<0>();
            __syncthreads();
            if constexpr (!same<T, bf16>()) {
                to_bf16<T, THREADS>(b, threadIdx.x);
                to_bf16<T, THREADS>(c, threadIdx.x);
                to_bf16<T, THREADS>(other_keys, threadIdx.x);
                __syncthreads();
            }
            own.multiply(c, b);
            other.multiply_all(chunk.second ? c : other_keys, chunk.second ? other_keys : b);
            __syncthreads();
        }
        own_scores.set(own);
        other_scores.set(other);
    }

    for (int n = 0; n < STAGES - 1; n++) {
        load(p, chunk, n, slices);
        copy_async_commit();
    }
    KeyGrad grad_b(warp, lane), grad_c(warp, lane);
    Pairs own(warp, lane), other(warp, lane), own_sum(warp, lane), other_sum(warp, lane); // dY X^T of a head; W
    float into[KeyGrad::ROW_TILES * 2] = {}, from[KeyGrad::ROW_TILES * 2] = {}, product = 0.f;
    for (int n = 0; n < chunk.heads * slices; n++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();
        load(p, chunk, n + STAGES - 1, slices);
        copy_async_commit();
        lane = opaque(lane);
        Stage stage(n);
        ValueTile x = stage.x(), grad_output = stage.grad_output();
        if constexpr (!same<T, bf16>()) {
            to_bf16<T, THREADS>(x, threadIdx.x);
            to_bf16<T, THREADS>(grad_output, threadIdx.x);
            to_bf16<T, THREADS>(stage.other(), threadIdx.x);
            __syncthreads();
        }
        own.multiply(grad_output, x);
        other.multiply_all(chunk.second ? grad_output : stage.other(), chunk.second ? stage.other() : x);
        // Decays from the span's beginning to the chunk's, and from the chunk's end to the span's.
        float own_total = stage.sum(C - 1), other_total = stage.other_sum(C - 1);
        float before = chunk.second ? other_total : 0.f, after = own_total + (chunk.second ? 0.f : other_total);
        {
            KeyGrad part(warp, lane);
            part.add<V>([&](u32(&a)[4], int row, int depth) { load_left(a, grad_output, row, depth, lane); },
                        [&](u32(&right)[4], int depth, int col) { load_right(right, stage.state(), depth, col, lane); });
            fold(grad_c, part, c, into, [&](int row) { return pow2(stage.sum(row) + before); });
        }
        {
            KeyGrad part(warp, lane);
            part.add<V>([&](u32(&a)[4], int row, int depth) { load_left(a, x, row, depth, lane); },
                        [&](u32(&right)[4], int depth, int col) { load_right(right, stage.state_grad(), depth, col, lane); });
            fold(grad_b, part, b, from, [&](int row) { return pow2(after - stage.sum(row)) * stage.step(row); });
        }
        product += product_of_states(chunk, stage);
        if (n % slices < slices - 1) continue;

        PairSums sums{};
        u32 own_sums = stage.memory + Stage::SUMS, steps = stage.memory + Stage::STEPS;
        if (own.matter()) {
            add_pairs<true, true, true>(own, own_sum, sums, own_scores, own_sums, own_sums, steps, 0.f);
            add_diagonal(own, own_sum, own_scores, steps, memory);
        }
        u32 other_sums = stage.memory + Stage::OTHER_SUMS, other_steps = stage.memory + Stage::OTHER_STEPS;
        if (chunk.second)
            add_pairs<false, true, false>(other, other_sum, sums, other_scores, own_sums, other_sums, other_steps, other_total);
        else
            add_pairs<false, false, true>(other, other_sum, sums, other_scores, other_sums, own_sums, steps, own_total);
        sums.store(own, memory);
        store_dots(grad_c, into, memory + INTO);
        store_dots(grad_b, from, memory + FROM);
#pragma unroll
        for (int mask = 1; mask < 32; mask *= 2) product += __shfl_xor_sync(~0u, product, mask);
        if (lane == 0) shared_store(memory + PRODUCTS + warp * 4, product);
        __syncthreads();
        if (threadIdx.x < C) {
            int t = threadIdx.x;
            bool has_pairs = blockIdx.y == 0; // which do not depend on the slice
            float left = total<KeyGrad::COL_WARPS>(memory + FROM, t) * pow2(after - stage.sum(t));
            float4 token;
            token.x = pow2(stage.sum(t) + before) * total<KeyGrad::COL_WARPS>(memory + INTO, t);
            token.y = left;
            token.z = left * stage.step(t);
            token.w = has_pairs ? shared_load<float>(memory + DIAGONAL + t * 4) : 0.f;
            if (has_pairs) {
                float others = total<Pairs::DOWN>(memory + COLS, t);
                token.x += total<Pairs::ACROSS>(memory + ROWS, t) - others * stage.step(t);
                token.y += others + shared_load<float>(memory + DIRECT + t * 4);
            }
            i64 place = blockIdx.y * p.slots + chunk.slot + chunk.head + n / slices;
            p.tokens[place * C + t] = token;
            if (t == 0) {
                float all = 0.f;
                for (int w = 0; w < WARPS; w++) all += shared_load<float>(memory + PRODUCTS + w * 4);
                p.products[place] = all * pow2(own_total + other_total);
            }
        }
        product = 0.f;
#pragma unroll
        for (int m = 0; m < KeyGrad::ROW_TILES * 2; m++) into[m] = from[m] = 0.f;
    }

    copy_async_wait<0>();
    __syncthreads();
    PairTile own_pairs(memory + OWN_PAIRS), other_pairs(memory + OTHER_PAIRS);
    load(chunk, other_keys, chunk.second ? p.b : p.c, chunk.group, blockIdx.y * K, p.shape.key_size, true);
    copy_async_commit();
    own_sum.store(own_pairs);
    other_sum.store(other_pairs);
    copy_async_wait<0>();
    __syncthreads();
    if constexpr (!same<T, bf16>()) {
        to_bf16<T, THREADS>(other_keys, threadIdx.x);
        __syncthreads();
    }
    grad_c.add<C>([&](u32(&a)[4], int row, int depth) { load_left(a, own_pairs, row, depth, lane); },
                  [&](u32(&right)[4], int depth, int col) { load_right(right, b, depth, col, lane); });
    grad_b.add<C>([&](u32(&a)[4], int row, int depth) { load_left_transposed(a, own_pairs, depth, row, lane); },
                  [&](u32(&right)[4], int depth, int col) { load_right(right, c, depth, col, lane); });
    auto of_other = [&](u32(&right)[4], int depth, int col) { load_right(right, other_keys, depth, col, lane); };
    if (chunk.second)
        grad_c.add<C>([&](u32(&a)[4], int row, int depth) { load_left(a, other_pairs, row, depth, lane); }, of_other);
    else
        grad_b.add<C>([&](u32(&a)[4], int row, int depth) { load_left_transposed(a, other_pairs, depth, row, lane); }, of_other);

    auto store = [&](KeyGrad& grad, const TensorView& view) {
        auto target = chunk.rows_of<float>(view, chunk.block.head);
        grad.visit([&](int row, int col, float& x, float& y) {
            int cols = p.shape.key_size - (int)blockIdx.y * K - col;
            if (row < chunk.rows && cols > 0) store_pair<VECTOR>(target[chunk.first + row] + blockIdx.y * K + col, cols, x, y);
        });
    };
    store(grad_b, p.grad_b);
    store(grad_c, p.grad_c);
}
