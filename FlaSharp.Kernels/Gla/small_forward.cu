// Gated linear attention forward of small heads: a block takes a head of a sequence, each of its warps BLOCKS times 16 tokens in
// a row.
//
// Each warp finds what its tokens get from one another, and what they add to the state. From that and the decays of the warps
// before it, it finds the state before its tokens, and adds what their queries read of it.
#include "fla/small_heads.cuh"

using namespace fla;

struct GlaSmallForward {
    GlaShape shape;
    TensorView q, k, v, g, o;
    const float* initial; // [sequences, H, K, V], or null for 0
    float* final;         // the same, or null
    float* states;        // for backward: the state every 16 * WARPS tokens, [slots, H, StateElement::COUNT]; or null
    float scale;
};

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, THREADS = 32 * WARPS;
constexpr int ELEMENTS = StateElement<K, V>::COUNT;
typedef GlaLine<BLOCK_TOKENS * WARPS> Line;
static_assert(WARPS % BLOCKS == 0, "states to be saved are such before a warp's tokens");

typedef Inputs<T, G, K, V> Tokens;

// A block once its warp has worked on it: outputs without what is in the state before the warp's tokens, and queries to read
// that.
struct Part {
    Operand q;
    Product out;
};

// What a warp's tokens make of the state; decays are logarithms.
struct Change {
    Product added;
    float decay[K / 4];
};

// Works on the next block of a warp. If its decays are strong, its tokens get nothing from one another.
__device__ __forceinline__ Part attend(Change& change, bool& strong, const Tokens& x, float scale, int lane) {
    Part part{};
    BlockGates<K> gates(x.g, lane);
    strong = gates.strong;
    auto query = [&](int h, int c) { return x.q.at(h, c) * gates.query_decay(h, c) * scale; };
    Operand q = operand_of<K>(query), k = operand_of<K>([&](int h, int c) { return x.k.at(h, c) * gates.key_decay(h, c); });
    Operand v = transpose<V>(operand(x.v));
    float before[K / 4]; // decays from the warp's first token to the queries' origin
#pragma unroll
    for (int c = 0; c < K / 4; c++) before[c] = pow2(change.decay[c] + gates.query_origin(c));
    part.q = operand_of<K>([&](int h, int c) { return query(h, c) * before[c]; });

    Product pairs{}, added{};
    multiply<BLOCK_TOKENS>(pairs, q, k);
    multiply<V>(part.out, kept(pairs, lane, [&](int i, int j) { return j <= i && !gates.strong; }), v);
    multiply<V>(part.out, q, operand<K>(scaled<K, V>(change.added, [&](int c) { return gates.start(c); })));

    multiply<K>(added, v, transpose<K>(k));
    added = scaled<K, V>(added, [&](int c) { return gates.rest(c); });
    advance<K, V>(change.added, [&](int c) { return pow2(gates.end[c]); }, added);
#pragma unroll
    for (int c = 0; c < K / 4; c++) change.decay[c] += gates.end[c];
    return part;
}

// What tokens get from one another by strong decays.
__device__ __forceinline__ Product attend_strongly(const Tokens& x, float scale, int lane) {
    BlockGates<K> gates(x.g, lane);
    Product out{}, pairs = split_pairs(gates, x.q, x.k, scale, lane);
    multiply<V>(out, kept(pairs, lane, [](int i, int j) { return j <= i; }), transpose<V>(operand(x.v)));
    return out;
}

// Of each warp; two sets, as some warps write the next while others read.
__shared__ __align__(16) float all_added[2][WARPS][ELEMENTS], all_decays[2][WARPS][K];

// The state after the tokens of warps `from` to `to` - 1.
__device__ __forceinline__ void advance_over(Product& state, int set, int from, int to, int lane) {
    constexpr int BATCH = 4; // loads under way at once
    static_assert(WARPS % BATCH == 0, "a batch has only warps that exist");
#pragma unroll 1
    for (int first = from & ~(BATCH - 1); first < to; first += BATCH) {
        Product added[BATCH];
        float decay[BATCH][K / 4];
#pragma unroll
        for (int i = 0; i < BATCH; i++) {
            added[i] = load_state<K>(all_added[set][first + i], lane);
#pragma unroll
            for (int c = 0; c < K / 4; c++) decay[i][c] = all_decays[set][first + i][lane % 4 * (K / 4) + c];
        }
#pragma unroll
        for (int i = 0; i < BATCH; i++)
            if (first + i >= from && first + i < to) advance<K, V>(state, [&](int c) { return decay[i][c]; }, added[i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 16 / WARPS) gla_small_forward(const __grid_constant__ GlaSmallForward p) {
    Line line(p.shape, blockIdx.x);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keys = p.shape.key_size, values = p.shape.value_size;
    // A warp's blocks of a round; once it has worked on them, those of the next.
    u32 memory = shared_memory() + warp * (BLOCKS * Tokens::WARP_BYTES);
    auto fetch = [&](int n) {
        int left = line.sequence.length - n * BLOCK_TOKENS, thread = opaque(lane);
        InputRows<VECTOR, T, G, K, V> inputs(p, line.sequence, opaque(line.head), n * BLOCK_TOKENS, thread);
#pragma unroll 1
        for (int i = 0; i < BLOCKS; i++) {
            Tokens::fetch<VECTOR>(memory + i * Tokens::WARP_BYTES, inputs, left - i * BLOCK_TOKENS, keys, values, thread);
            copy_async_commit();
            inputs.advance(BLOCK_TOKENS);
        }
    };
    fetch(warp * BLOCKS);
    Product state{};
    if (p.initial) state = load_dense_state<K, V>(p.initial + line.state_offset(p.shape), keys, values, lane);

    for (int first = 0, set = 0; first < line.chunks; first += WARPS * BLOCKS, set ^= 1) {
        int n = first + warp * BLOCKS;
        bool more = first + WARPS * BLOCKS < line.chunks;
        Change change{};
        Part part[BLOCKS];
        u32 strong = 0; // bits of blocks
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            copy_async_wait<BLOCKS - 1>();
            __syncwarp(); // what other lanes have copied
            Tokens x;
            x.load(memory + i * Tokens::WARP_BYTES, lane);
            copy_async_commit(); // an empty group: as many come after the next block's
            bool is_strong;
            part[i] = attend(change, is_strong, x, p.scale, lane);
            strong |= (u32)is_strong << i;
        }
#pragma unroll 1
        for (; strong; strong &= strong - 1) {
            int i = __ffs(strong) - 1;
            Tokens x;
            x.load(memory + i * Tokens::WARP_BYTES, lane);
            Product out = attend_strongly(x, p.scale, lane);
#pragma unroll
            for (int j = 0; j < BLOCKS; j++)
                if (i == j) part[j].out += out;
        }
        __syncwarp(); // the tokens are read
        if (more) fetch(n + WARPS * BLOCKS);
        store_state<K>(all_added[set][warp], change.added, lane);
        if (lane < 4)
#pragma unroll
            for (int c = 0; c < K / 4; c++) all_decays[set][warp][lane * (K / 4) + c] = pow2(change.decay[c]);
        __syncthreads();

        advance_over(state, set, 0, warp, lane);
        if (p.states && n % WARPS == 0 && n < line.chunks)
            store_state<K>(p.states + line.saved_state(p.shape, n) * ELEMENTS, state, lane);
        Operand before = operand<K>(state);
        Rows<T> o = lane_rows<V, T>(line.sequence, p.o, opaque(line.head), n * BLOCK_TOKENS, opaque(lane));
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) {
            multiply<V>(part[i].out, part[i].q, before);
            store_tokens<V, VECTOR>(o, line.rows(n + i), values, lane, [&](int h, int c) { return part[i].out.at(h, c); });
            advance(o, BLOCK_TOKENS);
        }
        if (more || (p.final && warp == WARPS - 1)) advance_over(state, set, warp, WARPS, lane);
    }
    if (p.final && warp == WARPS - 1) store_dense_state<K, V>(p.final + line.state_offset(p.shape), state, keys, values, lane);
}
