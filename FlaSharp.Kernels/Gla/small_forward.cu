// Gated linear attention forward of small heads: a block takes a head of a sequence, each of its warps BLOCKS times 16 tokens in
// a row.
//
// Each warp finds what its tokens get from one another, and what they add to the state. From that and the decays of the warps
// before it, it finds the state before its tokens, and adds what their queries read of it.
#include "fla/small_heads.cuh"

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, THREADS = 32 * WARPS;
constexpr int ELEMENTS = StateElement<K, V>::COUNT, THREAD_ELEMENTS = (ELEMENTS + THREADS - 1) / THREADS;
constexpr int MIN_BLOCKS = WARPS > 4 || K == 8 ? 16 / WARPS : 3; // more elements of a state for each thread of a small block
constexpr int SAVED_BLOCKS = SAVED_EVERY / BLOCK_TOKENS;
constexpr int DEPTH = BLOCKS > 1 ? 2 : 1; // a warp's blocks under way at once
typedef GlaLine<SAVED_EVERY> Line;
typedef Inputs<T, G, K, V> Tokens;
static_assert(SAVED_BLOCKS % BLOCKS == 0, "states to be saved are such before a warp's tokens");

// A block once its warp has worked on it: outputs without what is in the state before the warp's tokens, and queries to read
// that.
struct Part {
    Operand q;
    Product out;

    // Takes the place of the block's tokens.
    __device__ __forceinline__ void store(u32 at, int lane) const {
#pragma unroll
        for (int i = 0; i < K / 8; i++) shared_store(at + i * 256 + lane * 8, make_uint2(q.of[2 * i], q.of[2 * i + 1]));
#pragma unroll
        for (int i = 0; i < V / 8; i++)
            shared_store(at + K * 32 + i * 512 + lane * 16,
                         make_float4(out.of[i][0], out.of[i][1], out.of[i][2], out.of[i][3]));
    }
    __device__ __forceinline__ void load(u32 at, int lane) {
#pragma unroll
        for (int i = 0; i < K / 8; i++) {
            uint2 x = shared_load<uint2>(at + i * 256 + lane * 8);
            q.of[2 * i] = x.x, q.of[2 * i + 1] = x.y;
        }
#pragma unroll
        for (int i = 0; i < V / 8; i++) {
            float4 x = shared_load<float4>(at + K * 32 + i * 512 + lane * 16);
            out.of[i][0] = x.x, out.of[i][1] = x.y, out.of[i][2] = x.z, out.of[i][3] = x.w;
        }
    }
};

// What a warp's tokens make of the state; decays are logarithms.
struct Change {
    Product added;
    float decay[K / 4];
};

// Works on the next block of a warp, whose decays are not strong.
__device__ __forceinline__ Part attend(Change& change, const BlockGates<K>& gates, const Operand& causal, const Tokens& x,
                                       float scale) {
    Part part{};
    auto query = [&](int h, int c) { return x.q.at(h, c) * scale * pow2(gates.away[h][c]); };
    Operand q = operand_of<K>(query), k = operand_of<K>([&](int h, int c) { return x.k.at(h, c) * pow2(-gates.away[h][c]); });
    Operand v = transpose<V>(operand(x.v));
    float before[K / 4]; // decays from the warp's first token to the block's middle
#pragma unroll
    for (int c = 0; c < K / 4; c++) before[c] = pow2(change.decay[c] + gates.start_half[c]);
    part.q = operand_of<K>([&](int h, int c) { return query(h, c) * before[c]; });

    Product pairs{};
    multiply<BLOCK_TOKENS, K>(pairs, q, k);
    multiply<V>(part.out, masked(operand<BLOCK_TOKENS>(pairs), causal), v);
    Product state = scaled<K, V>(change.added, [&](int c) { return pow2(gates.start_half[c]); });
    multiply<V, K>(part.out, q, operand<K>(state));
    multiply<K>(state, v, transpose<K>(k));
    change.added = scaled<K, V>(state, [&](int c) { return pow2(gates.end_half[c]); });
#pragma unroll
    for (int c = 0; c < K / 4; c++) change.decay[c] += gates.sum(c);
    return part;
}

// The same if they are; `tokens` lie in shared memory.
__device__ __forceinline__ Part attend_strongly(Change& change, const GateSums<G>& sums, const Operand& causal, u32 tokens,
                                                float scale, int lane) {
    Tokens x;
    x.load(tokens, lane);
    BlockGates<K> gates(sums, x.g, lane);
    auto query = [&](int h, int c) { return x.q.at(h, c) * scale * gates.query_decay(h, c); };
    Operand k = operand_of<K>([&](int h, int c) { return x.k.at(h, c) * gates.key_decay(h, c); });
    Operand v = transpose<V>(operand(x.v));
    Part part{};
    part.q = operand_of<K>([&](int h, int c) { return query(h, c) * pow2(change.decay[c]); });
    multiply<V>(part.out, masked(operand<BLOCK_TOKENS>(split_pairs(gates, x.q, x.k, scale, lane)), causal), v);
    multiply<V, K>(part.out, operand_of<K>(query), operand<K>(change.added));
    Product added{};
    multiply<K>(added, v, transpose<K>(k));
    advance<K, V>(change.added, [&](int c) { return pow2(gates.sum(c)); }, added);
#pragma unroll
    for (int c = 0; c < K / 4; c++) change.decay[c] += gates.sum(c);
    return part;
}

__shared__ __align__(16) float states[WARPS][ELEMENTS], decays[WARPS][K];

// Leaves in each warp's memory the state before its tokens, in place of what they add. `state` is the one before all of them, and
// then the one after.
__device__ __forceinline__ void add_up(float (&state)[THREAD_ELEMENTS]) {
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        int e = threadIdx.x + i * THREADS;
        if (e >= ELEMENTS) break;
        int key = StateElement<K, V>(e, K, V).key;
        float added[WARPS], decay[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) added[w] = states[w][e], decay[w] = decays[w][key];
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            states[w][e] = state[i];
            state[i] = state[i] * decay[w] + added[w];
        }
    }
}

// visit(i, where it is in a dense state) for each of a thread's elements that exist.
template <class Visit> __device__ __forceinline__ void visit_state(const GlaSmallForward& p, const Line& line, Visit visit) {
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        StateElement<K, V> element(threadIdx.x + i * THREADS, p.shape.key_size, p.shape.value_size);
        if (element.exists) visit(i, line.state_offset(p.shape) + element.place(p.shape.value_size));
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gla_small_forward(const __grid_constant__ GlaSmallForward p) {
    Line line(p.shape, blockIdx.x);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, values = p.shape.value_size;
    // The copies come first and are what takes the time: rows of 16 bytes.
    u32 memory = shared_memory() + warp * (BLOCKS * Tokens::WARP_BYTES);
    int its_first = warp * (BLOCKS * BLOCK_TOKENS), left = line.sequence.length - its_first; // tokens
    InputCopies<VECTOR, T, G, K, V> copies(p.inputs, p.shape, line.sequence, line.head, its_first, memory, lane);
    auto fetch = [&](int block) {
        if (block < BLOCKS) copies.next(left - block * BLOCK_TOKENS);
        copy_async_commit();
    };
    auto fetch_first = [&] {
#pragma unroll
        for (int i = 0; i < DEPTH; i++) fetch(i);
    };
    fetch_first();
    GateSums<G> sums(lane);
    Operand causal = causal_mask(lane);
    float state[THREAD_ELEMENTS]{};

    for (int first = 0; first == 0 || first < line.chunks; first += WARPS * BLOCKS) {
        int n = first + warp * BLOCKS;
        Change change{};
#pragma unroll 1
        for (int i = 0; i < BLOCKS; i++) {
            copy_async_wait<DEPTH - 1>();
            __syncwarp(); // what other lanes have copied
            fetch(i + DEPTH);
            u32 at = memory + i * Tokens::WARP_BYTES;
            Tokens x;
            x.load(at, lane);
            BlockGates<K> gates(sums, x.g, lane);
            Part part = gates.strong ? attend_strongly(change, sums, causal, at, p.scale, opaque(lane))
                                     : attend(change, gates, causal, x, p.scale);
            __syncwarp(); // the tokens are read
            part.store(at, lane);
        }
        store_state<K>(states[warp], change.added, lane);
        if (lane < 4)
#pragma unroll
            for (int c = 0; c < K / 4; c++) decays[warp][lane * (K / 4) + c] = pow2(change.decay[c]);
        if (first == 0 && p.initial) visit_state(p, line, [&](int i, i64 at) { state[i] = p.initial[at]; });
        Rows<T> o = lane_rows<V, T>(line.sequence, p.o, opaque(line.head), n * BLOCK_TOKENS, lane);
        __syncthreads();
        add_up(state);
        __syncthreads();

        Product before = load_state<K>(states[warp], lane);
        if (p.states && n % SAVED_BLOCKS == 0 && n < line.chunks)
            store_state<K>(p.states + line.saved_state(p.shape, n) * ELEMENTS, before, lane);
        Operand read = operand<K>(before);
#pragma unroll 2
        for (int i = 0; i < BLOCKS; i++) {
            Part part;
            part.load(memory + i * Tokens::WARP_BYTES, lane);
            multiply<V, K>(part.out, part.q, read);
            store_tokens<V, VECTOR>(o, line.rows(n + i), values, lane, [&](int h, int c) { return part.out.at(h, c); });
            advance(o, BLOCK_TOKENS);
        }
        __syncwarp(); // the parts are read
        left -= WARPS * BLOCKS * BLOCK_TOKENS;
        copies.skip((WARPS - 1) * BLOCKS, BLOCKS * Tokens::WARP_BYTES);
        if (first + WARPS * BLOCKS < line.chunks) fetch_first();
    }
    if (p.final) visit_state(p, line, [&](int i, i64 at) { p.final[at] = state[i]; });
}
