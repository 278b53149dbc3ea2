// Gated linear attention forward of small heads: a block takes a head of a sequence, each of its warps 16 tokens at the same time.
//
// Each warp finds what its tokens add to the state, and what they get from one another. Then the states are added up over the warps,
// decayed, and each adds to its outputs what its queries read of the state before them.
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
constexpr int ELEMENTS = StateElement<K, V>::COUNT, THREAD_ELEMENTS = (ELEMENTS + THREADS - 1) / THREADS;
typedef GlaBlock<BLOCK_TOKENS, BLOCK_TOKENS * WARPS> Line;

// What a warp works on.
struct Tokens {
    TokenRows<T, K> q, k;
    TokenRows<T, V> v;
    TokenRows<G, K> g;

    __device__ __forceinline__ void load(const GlaSmallForward& p, const Line& line, int n, int lane) {
        if (n >= line.chunks) {
            *this = {};
            return;
        }
        int first = n * BLOCK_TOKENS, rows = line.rows(n), head = opaque(line.head), kv_head = head / p.shape.group;
        lane = opaque(lane);
        g.template load<VECTOR>(line.sequence.template rows<G>(p.g, kv_head), first, rows, p.shape.key_size, lane);
        k.template load<VECTOR>(line.sequence.template rows<T>(p.k, kv_head), first, rows, p.shape.key_size, lane);
        q.template load<VECTOR>(line.sequence.template rows<T>(p.q, head), first, rows, p.shape.key_size, lane);
        v.template load<VECTOR>(line.sequence.template rows<T>(p.v, kv_head), first, rows, p.shape.value_size, lane);
    }
};

__shared__ float states[WARPS][ELEMENTS], decays[WARPS][K];

// Leaves in each warp's memory the state before its block in place of what the block adds, and in `state` that after all blocks.
__device__ __forceinline__ void add_up(float (&state)[THREAD_ELEMENTS]) {
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        int e = threadIdx.x + i * THREADS;
        if (e >= ELEMENTS) break;
        int key = StateElement<K, V>(e, K, V).key;
        float added[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) added[w] = states[w][e];
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            states[w][e] = state[i];
            state[i] = state[i] * decays[w][key] + added[w];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 16 / WARPS) gla_small_forward(const __grid_constant__ GlaSmallForward p) {
    Line line(p.shape, blockIdx.x);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keys = p.shape.key_size, values = p.shape.value_size;
    i64 sequence_state = line.sequence_state(p.shape) * keys * values;
    float state[THREAD_ELEMENTS];
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        StateElement<K, V> element(threadIdx.x + i * THREADS, keys, values);
        state[i] = p.initial && element.exists ? p.initial[sequence_state + element.place(values)] : 0.f;
    }

    Tokens next;
    next.load(p, line, warp, lane);
    for (int first = 0; first < line.chunks; first += WARPS) {
        int n = first + warp;
        Tokens x = next;
        next.load(p, line, n + WARPS, lane);

        BlockGates<K> gates(x.g, lane);
        Operand q = operand_of<K>([&](int h, int c) { return x.q.at(h, c) * gates.query_decay(h, c) * p.scale; });
        Operand k = operand_of<K>([&](int h, int c) { return x.k.at(h, c) * gates.key_decay(h, c); });
        Operand v = transpose(operand(x.v));
        Product added{}, pairs{}, out{};
        multiply<K>(added, v, transpose(k));
        store_state<K>(states[warp], scaled<K>(added, [&](int c) { return gates.rest(c); }), lane);
        if (lane < 4)
#pragma unroll
            for (int c = 0; c < K / 4; c++) decays[warp][lane * (K / 4) + c] = pow2(gates.end[c]);
        if (gates.strong)
            pairs = split_pairs(gates, x.q, x.k, p.scale, lane);
        else
            multiply<BLOCK_TOKENS>(pairs, q, k);
        multiply<V>(out, kept(pairs, lane, [](int i, int j) { return j <= i; }), v);

        if (p.states)
#pragma unroll
            for (int i = 0; i < THREAD_ELEMENTS; i++)
                if (int e = threadIdx.x + i * THREADS; e < ELEMENTS)
                    p.states[(line.slot(p.shape.sequences, first) * p.shape.heads + line.head) * ELEMENTS + e] = state[i];
        __syncthreads();
        add_up(state);
        __syncthreads();
        multiply<V>(out, q, operand<K>(scaled<K>(load_state<K>(states[warp], lane), [&](int c) { return gates.start(c); })));
        if (n < line.chunks)
            store_tokens<V, VECTOR>(line.sequence.template rows<T>(p.o, opaque(line.head)), n * BLOCK_TOKENS, line.rows(n), values, lane,
                                    [&](int h, int c) { return out.at(h, c); });
        __syncwarp(); // the state before the block is read
    }

    if (!p.final) return;
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        StateElement<K, V> element(threadIdx.x + i * THREADS, keys, values);
        if (element.exists) p.final[sequence_state + element.place(values)] = state[i];
    }
}
