// Gated linear attention backward, all chunks at once: a block has one chunk of one head, with the state S before it (saved by
// gla_chunk_forward) and the gradient dS of the state after it (saved by gla_chunk_state). With q, k scaled by the chunk's
// decays:
//   A = tril(q k^T)   dA = tril(do v^T)
//   dv = A^T do + k dS     dq = dA k + do S^T     dk = dA^T q + v dS^T
// The gradient of the log-decays is a sum over all pairs of tokens that they lie between,
//   dg_t = rowsum_V(S dS) + sum over the chunk of k (v dS^T) + sum from t to the chunk's end of (q dq - k dk),
// anchored anew in each chunk. The pairs (t, t) cancel in it exactly; they are left out before and added to dq and dk after.
// What of it lies below float32's resolution of q dq, as with decays of -20, is lost.
// In chunks whose decays are too strong for a frame, as the kernels before have marked them, the pairs of tokens are left to
// gla_chunk_backward_pairs.
#include "fla/gla_backward.cuh"
#include "fla/pair_rows.cuh"
#include "fla/warp_tile.cuh"
#if HOPPER
#include "fla/bulk.cuh"
#include "fla/tma.cuh"
#include "fla/wgmma.cuh"
#endif

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, C = CHUNK;
constexpr int TERMS = SharedTile<OperandOf<T>::Type, C, K>::TERMS; // of a number as an operand, and in a saved state
// Value channels of the states in a slice. Shared memory holds one of the state and one of its gradient; or, with Hopper's
// products, as many as fit, of both in turns: two are used while the others are on their way.
constexpr int SLICE = HOPPER ? 32 : V < 64 / TERMS ? V : 64 / TERMS, SLOTS = STATE_SLOTS;
constexpr int WARPS = BACKWARD_WARPS, THREADS = 32 * WARPS;

typedef ChunkGates<C, K, THREADS> Gates;
typedef OperandOf<T>::Type Operand;
typedef SharedTile<Operand, C, K> KeyTile;
typedef SharedTile<Operand, C, V> ValueTile;
typedef SharedTile<Operand, C, C> PairTile;
typedef FloatTile<C, K> GradTile;
#if HOPPER
// Half of the groups of four warps have dk, half dq, each of them so many key channels.
constexpr int GROUP_WARPS = 4, GROUPS = WARPS / GROUP_WARPS, GROUP_KEYS = 2 * K / GROUPS;
typedef WarpTile<C, GROUP_KEYS, GROUP_WARPS, KeyTile::Fragment, bf16, GROUP_WARPS> KeyGrad;
#else
typedef WarpTile<C, K, WARPS, KeyTile::Fragment> KeyGrad;
#endif
typedef WarpTile<C, SLICE, WARPS, KeyTile::Fragment> ValueGrad;

// A slice of a saved state [SLICE x K], as it lies in global memory.
struct StateTile {
    static constexpr int BYTES = SLICE * TERMS * K * 2;
    u32 base;
    __device__ __forceinline__ u32 at(int value, int key) const {
        return base + ((value >> 3) * (TERMS * K / 8) + (key >> 3)) * 128 + (value & 7) * 16 + (key & 7) * 2;
    }
    static __device__ __forceinline__ u32 step(u32 address, int value, int key) {
        return address + value * (TERMS * K / 8 * 16) + key * 16; // both multiples of 8
    }
#if HOPPER
    // As operands of Hopper's products: values as rows with 16 keys, or keys as rows with 16 values.
    __device__ __forceinline__ u64 operand(u32 value, u32 key) const {
        return block_operand(at(value, key), BLOCK_BYTES, K / 8 * BLOCK_BYTES);
    }
    __device__ __forceinline__ u64 operand_transposed(u32 value, u32 key) const {
        return block_operand(at(value, key), K / 8 * BLOCK_BYTES, BLOCK_BYTES);
    }
#endif
    __device__ __forceinline__ StateTile term(int t) const { return {base + t * (K * 16)}; }
    // 8 neighbouring keys.
    __device__ __forceinline__ void load(u32 (&pairs)[4][TERMS], int value, int key) const {
#pragma unroll
        for (int t = 0; t < TERMS; t++) {
            uint4 x = shared_load<uint4>(term(t).at(value, key));
            pairs[0][t] = x.x, pairs[1][t] = x.y, pairs[2][t] = x.z, pairs[3][t] = x.w;
        }
    }
};

constexpr int Q = 0, KEY = Q + KeyTile::BYTES, VALUE = KEY + KeyTile::BYTES, GRAD_OUTPUT = VALUE + ValueTile::BYTES;
constexpr int STATES = GRAD_OUTPUT + ValueTile::BYTES, PAIRS = STATES + SLOTS * StateTile::BYTES;
// While A is not there yet, or no longer needed, its memory holds sums over threads.
constexpr int TOTALS = PAIRS, ANCHORS = TOTALS + Gates::STRIPS * K * 4;
constexpr int ANCHOR_ROWS = KeyGrad::ROW_WARPS + THREADS / K;
constexpr int END_OF_SUMS = ANCHORS + ANCHOR_ROWS * K * 4, END_OF_PAIRS = PAIRS + PairTile::BYTES;
constexpr int GRAD_PAIRS = END_OF_SUMS > END_OF_PAIRS ? END_OF_SUMS : END_OF_PAIRS;
constexpr int DIAGONAL = GRAD_PAIRS + PairTile::BYTES;
constexpr int END_OF_INPUTS = DIAGONAL + (C * 4 + 255) / 256 * 256; // where step() wants a tile
// On their way out, the gradients of queries and keys take the place of values and states where these are large enough.
constexpr int QUERY_GRADS = 2 * ValueTile::BYTES >= GradTile::BYTES ? VALUE : END_OF_INPUTS;
constexpr int AFTER_QUERY_GRADS = QUERY_GRADS == VALUE ? END_OF_INPUTS : END_OF_INPUTS + GradTile::BYTES;
constexpr int KEY_GRADS = SLOTS * StateTile::BYTES >= GradTile::BYTES ? STATES : AFTER_QUERY_GRADS;
constexpr int BARRIERS = KEY_GRADS == STATES ? AFTER_QUERY_GRADS : AFTER_QUERY_GRADS + GradTile::BYTES;
constexpr int END_OF_SHARED = BARRIERS + (HOPPER ? SLOTS * 8 : 0);
static_assert(END_OF_SHARED == SHARED);

typedef PairRows<C, WARPS / 2> Pairs; // half of the warps have A, half dA
typedef GlaChunk<C> Chunk;

// Whether the chunk's queries begin with the factor 1 and its keys end with it, as their decays are too strong for a frame.
struct Frames {
    bool at_start, at_end;
};

// Slices of the states and of their gradients in turns: an even number is one of the latter.
__device__ __forceinline__ StateTile state_tile(u32 memory, int n) { return {memory + STATES + n % SLOTS * StateTile::BYTES}; }

#if HOPPER
// Of a slice's copy.
__device__ __forceinline__ Mbarrier loaded(u32 memory, int n) { return {memory + BARRIERS + n % SLOTS * Mbarrier::BYTES}; }

// By one thread.
__device__ __forceinline__ void load_states(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, int n) {
    int value = n / 2 * SLICE;
    if (value >= p.state_values) return;
    loaded(memory, n).arrive_expecting(StateTile::BYTES);
    load_bulk(state_tile(memory, n).base, (n % 2 ? p.states : p.state_grads) + (chunk.slot * p.state_values + value) * K,
              StateTile::BYTES, loaded(memory, n));
}
#else
__device__ __forceinline__ void load_states(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, int slice) {
    i64 from = (chunk.slot * p.state_values + slice * SLICE) * TERMS * K;
#pragma unroll
    for (int i = 0; i < (StateTile::BYTES / 16 + THREADS - 1) / THREADS; i++) {
        int piece = i * THREADS + opaque(threadIdx.x);
        if (piece >= StateTile::BYTES / 16) continue;
        copy_async<16>(state_tile(memory, 0).base + piece * 16, p.state_grads + from + piece * 8, true);
        copy_async<16>(state_tile(memory, 1).base + piece * 16, p.states + from + piece * 8, true);
    }
    copy_async_commit();
}
#endif

#if HOPPER
// One of the groups makes A or dA of two tiles; x y^T is not needed if the decays are too strong for a frame.
template <class Tile, class Keep>
__device__ __forceinline__ void make_pairs(const PairTile& pairs, const Tile& x, const Tile& y, bool strong, int warp, int lane,
                                           u32 diagonal, Keep keep) {
    WarpTile<C, C, GROUP_WARPS, KeyTile::Fragment, bf16, GROUP_WARPS> product_of(warp % GROUP_WARPS, lane);
    auto& sum = product_of.sum[0];
    begin_products(sum);
#pragma unroll
    for (int k = 0; k < Tile::COLS; k += 16) product<0, 0>(sum, operand(x, 0, k), operand(y, 0, k), k > 0);
    commit_products();
    wait_products<0>(sum);
    product_of.visit([&](int row, int col, float& left, float& right) {
        if (strong) left = right = 0.f;
        if (diagonal && row == col) shared_store(diagonal + row * 4, left);
        if (diagonal && row == col + 1) shared_store(diagonal + row * 4, right);
        pairs.store(pairs.operand_at(row, col), keep(row, col) ? left : 0.f, keep(row, col + 1) ? right : 0.f);
    });
}
#endif

// Loads the chunk, makes A and dA, and scales queries and keys. Both are 0 if the decays are too strong for a frame.
__device__ __forceinline__ void prepare(const GlaChunkBackward& p, const Chunk& chunk, const Frames& frames, u32 memory) {
    int thread = opaque(threadIdx.x), warp = thread / 32, lane = thread % 32;
    KeyTile q(memory + Q), k(memory + KEY);
    ValueTile v(memory + VALUE), grad_output(memory + GRAD_OUTPUT);
    Gates::Totals totals(memory + TOTALS);
    Gates gates(thread);
    load_gates<G, VECTOR>(p, chunk, gates, [&] {
        load<VECTOR, THREADS>(chunk, q, p.q, chunk.block.head, p.shape.key_size);
        load<VECTOR, THREADS>(chunk, k, p.k, chunk.kv_head, p.shape.key_size);
        if (HOPPER) copy_async_commit();
        load<VECTOR, THREADS>(chunk, v, p.v, chunk.kv_head, p.shape.value_size);
        load<VECTOR, THREADS>(chunk, grad_output, p.grad_output, chunk.block.head, p.shape.value_size);
        copy_async_commit();
        if (!HOPPER) load_states(p, chunk, memory, 0);
    });
    gates.store_totals(totals);
    copy_async_wait<1>(); // for all but the last: values, or states
    __syncthreads();
    gates.join(totals);
    float start[2], end[2];
    gates.origins(frames.at_start, frames.at_end, start, end);
    bool strong = frames.at_start || frames.at_end;
    gates.scale<T>(q, 1.f, start, p.scale);
    gates.scale<T>(k, -1.f, end, 1.f);
    copy_async_wait<HOPPER ? 0 : 1>();
    if (HOPPER && !same<T, bf16>()) __syncthreads();
    to_bf16<T, THREADS>(v, thread);
    to_bf16<T, THREADS>(grad_output, thread);
#if HOPPER
    fence_for_products();
    __syncthreads();
    int group = __shfl_sync(~0u, warp / GROUP_WARPS, 0);
    if (group == 0)
        make_pairs(PairTile(memory + PAIRS), q, k, strong, warp, lane, 0, [](int i, int j) { return j <= i; });
    else if (group == GROUPS / 2)
        make_pairs(PairTile(memory + GRAD_PAIRS), grad_output, v, strong, warp, lane, memory + DIAGONAL,
                   [](int i, int j) { return j < i; });
    fence_for_products();
#else
    __syncthreads();
    Pairs pairs(warp % (WARPS / 2), lane);
    if (Pairs::SPARE && !pairs.exist()) return;
    if (warp < WARPS / 2) {
        if (!strong) pairs.multiply(q, k);
        pairs.mask([](int i, int j) { return j <= i; });
        pairs.store(PairTile(memory + PAIRS));
    } else {
        if (!strong) pairs.multiply(grad_output, v);
        pairs.store_diagonal(memory + DIAGONAL);
        pairs.mask([](int i, int j) { return j < i; });
        pairs.store(PairTile(memory + GRAD_PAIRS));
    }
#endif
}

// Sums over the chunk that anchor the gradient of the log-decays, one row of K for each group of threads that adds its own: of
// the gradients of keys from states, and of products of states.
__device__ __forceinline__ void store_anchors(u32 memory, const KeyGrad& grad_k) {
    constexpr int COUNT = 4 * KeyGrad::COL_TILES, LANES = 8, OTHERS = LANES > COUNT ? (LANES / COUNT - 1) * 4 : 0;
    PlainTile<float, ANCHOR_ROWS, K> anchors(memory + ANCHORS);
    KeyTile k(memory + KEY);
    if (!grad_k.exists()) return;
    float sums[COUNT] = {};
#pragma unroll
    for (int n = 0; n < COUNT / 2; n++)
#pragma unroll
        for (int m = 0; m < 2 * KeyGrad::ROW_TILES; m++) {
            u32 pair[TERMS];
            k.load(pair, k.operand_at(grad_k.row + m * 8 + grad_k.lane / 4, grad_k.col + n * 8 + grad_k.lane % 4 * 2));
            sums[2 * n] += low_of(pair) * grad_k.sum[m / 2][n][m % 2 * 2];
            sums[2 * n + 1] += high_of(pair) * grad_k.sum[m / 2][n][m % 2 * 2 + 1];
        }
    int first = sum_over_lanes<16, 4, COUNT>(sums, grad_k.lane);
    if (grad_k.lane & OTHERS) return; // they have the same one
#pragma unroll
    for (int i = 0; i < max(1, COUNT / LANES); i++) {
        int col = grad_k.col + (first + i) / 2 * 8 + grad_k.lane % 4 * 2 + (first + i) % 2;
        shared_store(anchors.at(grad_k.row / (KeyGrad::ROW_TILES * 16), col), sums[i]);
    }
}
__device__ __forceinline__ void store_anchors(u32 memory, float (&products)[8], int thread) {
    PlainTile<float, ANCHOR_ROWS, K> anchors(memory + ANCHORS);
    int first = sum_over_lanes<4, 1, 8>(products, thread);
    shared_store(anchors.at(KeyGrad::ROW_WARPS + thread / K, thread % K / 8 * 8 + first), products[0]);
}

// A thread's part of a slice of the state and of its gradient, of which products are summed over the values: in each round one
// value and 8 keys, from thread % K / 8 * 8 on.
struct StateNumbers {
    static constexpr int VALUES = 8 * (THREADS / K), ROUNDS = VALUES < SLICE ? SLICE / VALUES : 1; // of all threads in a round
    u32 states[4][TERMS], grads[4][TERMS];

    static __device__ __forceinline__ bool exist(int thread) { return VALUES <= SLICE || thread / K * 8 < SLICE; }
    __device__ __forceinline__ void load(const StateTile& state, const StateTile& grad, int round, int thread) {
        if (!exist(thread)) return;
        int value = round * VALUES + thread / K * 8 + thread % 8, key = thread % K / 8 * 8;
        state.load(states, value, key);
        grad.load(grads, value, key);
    }
    __device__ __forceinline__ void add(float (&products)[8], int thread) const {
        if (!exist(thread)) return;
#pragma unroll
        for (int c = 0; c < 4; c++) {
            products[2 * c] += low_of(states[c]) * low_of(grads[c]);
            products[2 * c + 1] += high_of(states[c]) * high_of(grads[c]);
        }
    }
};

// The last part: thread by thread of those that hold the decays.
__device__ __forceinline__ void store_gradients(const GlaChunkBackward& p, const Chunk& chunk, const Frames& frames, u32 memory,
                                                const Gates& gates, bool limited) {
    KeyTile q(memory + Q), k(memory + KEY);
    GradTile query_grads(memory + QUERY_GRADS), key_grads(memory + KEY_GRADS);
    auto query_target = chunk.rows_of<T>(p.grad_q, chunk.block.head), key_target = chunk.rows_of<T>(p.grad_k, chunk.block.head);
    int cols = p.shape.key_size - gates.col;
    float start[2], end[2], grad_g[Gates::ROWS][2];
    gates.origins(frames.at_start, frames.at_end, start, end);
    u32 query_top = q.operand_at(gates.row, gates.col), key_top = k.operand_at(gates.row, gates.col);
    u32 diagonal_top = memory + DIAGONAL + gates.row * 4;
    u32 query_grad_top = query_grads.at(gates.row, gates.col), key_grad_top = key_grads.at(gates.row, gates.col);
    T *query_there = query_target[chunk.first + gates.row] + gates.col,
      *key_there = key_target[chunk.first + gates.row] + gates.col;
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++, query_there += query_target.stride, key_there += key_target.stride) {
        float2 grad_q = shared_load<float2>(GradTile::step(query_grad_top, i)),
               grad_k = shared_load<float2>(GradTile::step(key_grad_top, i));
        u32 query[TERMS], key[TERMS];
        q.load(query, q.step(query_top, i, 0)), k.load(key, k.step(key_top, i, 0));
        float2 of_query = gates.decay(i, 1.f, start), of_key = gates.decay(i, -1.f, end);
        float diagonal = shared_load<float>(diagonal_top + i * 4);
        grad_g[i][0] = low_of(query) * grad_q.x - low_of(key) * grad_k.x;
        grad_g[i][1] = high_of(query) * grad_q.y - high_of(key) * grad_k.y;
        grad_q.x = (grad_q.x + diagonal * low_of(key)) * of_query.x * p.scale;
        grad_q.y = (grad_q.y + diagonal * high_of(key)) * of_query.y * p.scale;
        grad_k.x = (grad_k.x + diagonal * low_of(query)) * of_key.x;
        grad_k.y = (grad_k.y + diagonal * high_of(query)) * of_key.y;
        if (gates.row + i < chunk.rows && cols > 0) { // the stores alone: the rest runs on without a branch
            store_pair<VECTOR>(query_there, cols, grad_q.x, grad_q.y);
            store_pair<VECTOR>(key_there, cols, grad_k.x, grad_k.y);
        }
    }

    // What comes from beyond the chunk, and sums from each row to its end.
    float2 beyond = make_float2(0.f, 0.f);
    PlainTile<float, ANCHOR_ROWS, K> anchors(memory + ANCHORS);
    for (int i = 0; i < ANCHOR_ROWS; i++) {
        float2 sum = shared_load<float2>(anchors.at(i, gates.col));
        bool of_states = i >= KeyGrad::ROW_WARPS; // whose frames meet only if the decays are not too strong
        beyond.x += of_states ? sum.x * pow2(end[0] - start[0]) : sum.x;
        beyond.y += of_states ? sum.y * pow2(end[1] - start[1]) : sum.y;
    }
    gates.sum_to_end(grad_g, beyond, Gates::Totals(memory + TOTALS), [] { __syncthreads(); });
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++) grad_g[i][0] += beyond.x, grad_g[i][1] += beyond.y;
    if (limited) clear_limited<G, VECTOR>(p, chunk, gates, grad_g);
    auto gate_target = chunk.rows_of<G>(p.grad_g, chunk.block.head);
    G* gate_there = gate_target[chunk.first + gates.row] + gates.col;
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++, gate_there += gate_target.stride)
        if (gates.row + i < chunk.rows && cols > 0) store_pair<VECTOR>(gate_there, cols, grad_g[i][0], grad_g[i][1]);
}

// Writes COLS columns of the gradients of values, from `value` on, which lie in place of these; by STORING threads.
template <int COLS, int STORING>
__device__ __forceinline__ void store_value_grads(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, int value,
                                                  int thread) {
    constexpr int PIECE = 16 / sizeof(T);
    SharedTile<T, C, V> output(memory + VALUE);
    auto target = chunk.rows_of<T>(p.grad_v, chunk.block.head);
    for (int i = thread; i < C * COLS / PIECE; i += STORING) {
        int row = i / (COLS / PIECE), col = value + i % (COLS / PIECE) * PIECE;
        if (row >= chunk.rows || col >= p.shape.value_size) continue;
        T* there = target[chunk.first + row] + col;
        if constexpr (VECTOR >= PIECE)
            *reinterpret_cast<uint4*>(there) = shared_load<uint4>(output.at(row, col));
        else
            for (int c = 0; c < PIECE && col + c < p.shape.value_size; c++) there[c] = shared_load<T>(output.at(row, col + c));
    }
}

#if HOPPER
// Makes the gradients of values, and those of queries and keys: finish() is given what writes these to shared memory.
template <class Finish>
__device__ __forceinline__ void multiply(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, Finish finish) {
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32, group = warp / GROUP_WARPS; // uniform
    bool of_keys = group < GROUPS / 2; // those of queries otherwise
    KeyTile q(memory + Q), k(memory + KEY);
    ValueTile grad_output(memory + GRAD_OUTPUT), left(memory + (of_keys ? VALUE : GRAD_OUTPUT));
    PairTile pairs(memory + PAIRS), grad_pairs(memory + GRAD_PAIRS);
    SharedTile<T, C, V> output(memory + VALUE);

    KeyGrad grad(warp % GROUP_WARPS, lane);
    grad.col = group % (GROUPS / 2) * GROUP_KEYS;
    auto& sum = grad.sum[0];
    float products[8] = {};
    __syncthreads(); // A and dA are made
#pragma unroll 1
    for (int slice = 0; slice * SLICE < p.state_values; slice++) {
        int value = slice * SLICE;
        bool mine = slice % GROUPS == group; // the group that makes the gradients of these values
        int n = 2 * slice;
        StateTile state_grad = state_tile(memory, n), state = state_tile(memory, n + 1);
        StateTile right{of_keys ? state_grad.base : state.base};
        float grad_v[SLICE / 8][4];
        loaded(memory, n).wait(n / SLOTS);
        loaded(memory, n + 1).wait((n + 1) / SLOTS);
        int thread = opaque(threadIdx.x);
        StateNumbers numbers[StateNumbers::ROUNDS]; // loaded before the products want all of the shared memory's bandwidth
#pragma unroll
        for (int i = 0; i < StateNumbers::ROUNDS; i++) numbers[i].load(state, state_grad, i, thread);
        begin_products(sum);
#pragma unroll
        for (int v = 0; v < SLICE; v += 16)
            product<0, 1>(sum, operand(left, 0, value + v), right.operand_transposed(v, grad.col));
        commit_products();
        if (mine) {
            begin_products(grad_v);
#pragma unroll
            for (int t = 0; t < C; t += 16)
                product<1, 1>(grad_v, operand_transposed(pairs, t, 0), operand_transposed(grad_output, t, value), t > 0);
#pragma unroll
            for (int key = 0; key < K; key += 16) product<0, 0>(grad_v, operand(k, 0, key), state_grad.operand(0, key));
            commit_products();
        }
#pragma unroll
        for (int i = 0; i < StateNumbers::ROUNDS; i++) numbers[i].add(products, thread);
        wait_products<0>(sum, grad_v);
        __syncthreads();
        if (threadIdx.x == 0)
            for (int i = 0; i < 2; i++) load_states(p, chunk, memory, n + SLOTS + i);
        if (mine) // over the values, which have been read
#pragma unroll
            for (int n = 0; n < SLICE / 8; n++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    shared_store(output.at(grad.row + half * 8 + lane / 4, value + n * 8 + lane % 4 * 2),
                                 Pair<T>::pack(grad_v[n][2 * half], grad_v[n][2 * half + 1]));
    }
    __syncthreads();
    store_anchors(memory, products, opaque(threadIdx.x));
    if (of_keys) {
        store_anchors(memory, grad);
        begin_products(sum);
#pragma unroll
        for (int t = 0; t < C; t += 16)
            product<1, 1>(sum, operand_transposed(grad_pairs, t, 0), operand_transposed(q, t, grad.col));
        commit_products();
    } else {
        begin_products(sum);
#pragma unroll
        for (int t = 0; t < C; t += 16)
            product<0, 1>(sum, operand(grad_pairs, 0, t), operand_transposed(k, t, grad.col));
        commit_products();
        store_value_grads<V, THREADS / 2>(p, chunk, memory, 0, threadIdx.x - THREADS / 2);
    }
    finish([&] {
        wait_products<0>(sum);
        __syncthreads(); // the gradients of values are read
        GradTile grads(memory + (of_keys ? KEY_GRADS : QUERY_GRADS));
        grad.visit([&](int row, int col, float& x, float& y) { shared_store(grads.at(row, col), make_float2(x, y)); });
    });
}
#else
// Makes the gradients of values, and those of queries and keys: finish() is given what writes these to shared memory.
template <class Finish>
__device__ __forceinline__ void multiply(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, Finish finish) {
    int thread = threadIdx.x, warp = thread / 32, lane = thread % 32;
    KeyTile q(memory + Q), k(memory + KEY);
    ValueTile v(memory + VALUE), grad_output(memory + GRAD_OUTPUT);
    PairTile pairs(memory + PAIRS), grad_pairs(memory + GRAD_PAIRS);
    StateTile state_grad = state_tile(memory, 0), state = state_tile(memory, 1);

    KeyGrad grad_q(warp, lane), grad_k(warp, lane);
    float products[8] = {};
    for (int slice = 0; slice * SLICE < p.state_values; slice++) {
        int value = slice * SLICE;
        lane = opaque(lane);
        copy_async_wait<0>();
        __syncthreads();
        grad_k.add<SLICE>([&](auto& a, int row, int depth) { load_left(a, v, row, value + depth, lane); },
                          [&](auto& b, int depth, int col) { load_right(b, state_grad, depth, col, lane); });
        grad_q.add<SLICE>([&](auto& a, int row, int depth) { load_left(a, grad_output, row, value + depth, lane); },
                          [&](auto& b, int depth, int col) { load_right(b, state, depth, col, lane); });
        ValueGrad grad_v(warp, lane);
        grad_v.add<K>([&](auto& a, int row, int depth) { load_left(a, k, row, depth, lane); },
                      [&](auto& b, int depth, int col) { load_right_transposed(b, state_grad, col, depth, lane); });
        grad_v.add<C>([&](auto& a, int row, int depth) { load_left_transposed(a, pairs, depth, row, lane); },
                      [&](auto& b, int depth, int col) { load_right(b, grad_output, depth, value + col, lane); });
#pragma unroll
        for (int i = 0; i < StateNumbers::ROUNDS; i++) {
            StateNumbers numbers;
            numbers.load(state, state_grad, i, opaque(threadIdx.x));
            numbers.add(products, opaque(threadIdx.x));
        }
        __syncthreads();
        if (value + SLICE < p.state_values) load_states(p, chunk, memory, slice + 1);

        SharedTile<T, C, V> output(memory + VALUE); // over the values of this slice
        grad_v.visit(
            [&](int row, int col, float& x, float& y) { shared_store(output.at(row, value + col), Pair<T>::pack(x, y)); });
        __syncthreads();
        store_value_grads<SLICE, THREADS>(p, chunk, memory, value, threadIdx.x);
    }

    __syncthreads(); // A and the outputs are read
    store_anchors(memory, grad_k);
    store_anchors(memory, products, thread);
    grad_q.add<C>([&](auto& a, int row, int depth) { load_left(a, grad_pairs, row, depth, lane); },
                  [&](auto& b, int depth, int col) { load_right(b, k, depth, col, lane); });
    grad_k.add<C>([&](auto& a, int row, int depth) { load_left_transposed(a, grad_pairs, depth, row, lane); },
                  [&](auto& b, int depth, int col) { load_right(b, q, depth, col, lane); });
    GradTile query_grads(memory + QUERY_GRADS), key_grads(memory + KEY_GRADS);
    finish([&] {
        grad_q.visit([&](int row, int col, float& x, float& y) { shared_store(query_grads.at(row, col), make_float2(x, y)); });
        grad_k.visit([&](int row, int col, float& x, float& y) { shared_store(key_grads.at(row, col), make_float2(x, y)); });
    });
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gla_chunk_backward(const __grid_constant__ GlaChunkBackward p) {
    Chunk chunk(p, blockIdx.x);
    if (chunk.block.chunks == 0) return;
    u32 memory = shared_memory();
    Frames frames{p.plain_states[chunk.slot] != 0, p.plain_grads[chunk.slot] != 0};
#if HOPPER
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) loaded(memory, i).init(1);
        fence_barriers();
        for (int i = 0; i < SLOTS; i++) load_states(p, chunk, memory, i);
    }
#endif
    prepare(p, chunk, frames, memory);

    Gates::Totals totals(memory + TOTALS);
    Gates gates(opaque(threadIdx.x));
    bool limited;
    multiply(p, chunk, memory, [&](auto write) { limited = load_gates<G, VECTOR>(p, chunk, gates, write); });
    gates.store_totals(totals);
    __syncthreads();
    gates.join(totals);
    store_gradients(p, chunk, frames, memory, gates, limited);
}
