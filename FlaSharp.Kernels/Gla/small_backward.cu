// Gated linear attention backward of small heads: a block takes a head of a sequence from its end to its start, each of its warps
// 16 tokens at the same time.
//
// Each warp finds what its tokens add to the state and to the gradient of the state; then the states are added up from the first
// warp on and their gradients from the last one on, decayed. The state before the warps' tokens is one that forward saved.
//   With q and k scaled, S the state before a warp's tokens and dS the gradient of that after them, A = tril(q k^T), dA = tril(do
//   v^T):
//   dv = A^T do + k dS,   dq = dA k + do S^T,   dk = dA^T q + v dS^T,   dg_t = sum(q dq - k dk, over tokens from t on) + sum(S'
//   dS)
// with S' the state after the tokens. Pairs (t, t), which cancel in dg, are left out there and added to dq and dk as they are.
#include "fla/small_heads.cuh"

using namespace fla;

struct GlaSmallBackward {
    GlaShape shape;
    TensorView q, k, v, g, grad_output;
    TensorView grad_q, grad_k, grad_v, grad_g; // of H heads each: where these share keys, the caller adds them
    const float* states;                       // of small_forward.cu
    const float* final_gradient;               // [sequences, H, K, V], or null for 0
    float* initial_gradient;                   // the same, or null
    float scale;
};

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, THREADS = 32 * WARPS;
constexpr int ELEMENTS = StateElement<K, V>::COUNT, THREAD_ELEMENTS = (ELEMENTS + THREADS - 1) / THREADS;
constexpr int MIN_BLOCKS = WARPS > 4 ? 16 / WARPS : 3; // the elements of a small block's threads take more registers
typedef GlaLine<BLOCK_TOKENS * WARPS> Line;

// What a warp works on.
struct Tokens : Inputs<T, G, K, V> {
    TokenRows<T, V> grad_output;

    __device__ __forceinline__ void load(const GlaSmallBackward& p, const Line& line, int n, int lane) {
        if (n >= line.chunks) {
            *this = {};
            return;
        }
        int first = n * BLOCK_TOKENS, rows = line.rows(n), head = opaque(line.head);
        lane = opaque(lane);
        Inputs::load<VECTOR>(p, line.sequence, head, first, rows, lane);
        grad_output.load<VECTOR>(lane_rows<V, T>(line.sequence, p.grad_output, head, first, lane), rows, p.shape.value_size,
                                 lane);
    }
};

__shared__ float states[WARPS][ELEMENTS], state_grads[WARPS][ELEMENTS], decays[WARPS][K];

// Leaves in each warp's memory the state before its tokens, and the gradient of that after them, in place of what they add.
// `state` is the one before all of them, `grad` the gradient of the one after them and then of that before.
__device__ __forceinline__ void add_up(const float (&state)[THREAD_ELEMENTS], float (&grad)[THREAD_ELEMENTS]) {
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        int e = threadIdx.x + i * THREADS;
        if (e >= ELEMENTS) break;
        int key = StateElement<K, V>(e, K, V).key;
        float sum = state[i], added[WARPS];
#pragma unroll
        for (int w = 0; w < WARPS; w++) added[w] = states[w][e];
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            states[w][e] = sum;
            sum = sum * decays[w][key] + added[w];
        }
#pragma unroll
        for (int w = 0; w < WARPS; w++) added[w] = state_grads[w][e];
#pragma unroll
        for (int w = WARPS - 1; w >= 0; w--) {
            state_grads[w][e] = grad[i];
            grad[i] = grad[i] * decays[w][key] + added[w];
        }
    }
}

// Gradients by way of pairs whose decays are too strong for a frame, level by level of binary splitting: a token is a query or a
// key there, and its gradient that of the level's operand.
__device__ __forceinline__ void add_split_gradients(const BlockGates<K>& gates, const Tokens& x, float scale, int lane,
                                                    Product& grad_q, Product& grad_k, Product& grad_g) {
#pragma unroll 1
    for (int half = BLOCK_TOKENS / 2; half > 0; half /= 2) {
        Operand numbers = split_operand(gates, x.q, x.k, scale, half, lane);
        Operand read = operand(x.v), grad_output = operand(x.grad_output);
#pragma unroll
        for (int i = 0; i < 4; i++)
            if (gates.is_query(lane, i % 2, half)) read.of[i] = grad_output.of[i];
        Product both{}, grad{}; // dA of the level and its transpose
        multiply<BLOCK_TOKENS>(both, read, read);
        multiply<K>(grad, kept(both, lane, [=](int i, int j) { return tokens_apart(i, j, half); }), transpose<K>(numbers));
#pragma unroll
        for (int c = 0; c < K / 4; c++) {
            float border = gates.border(lane, half, c);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float away = gates.away[h][c] - border, product = number(numbers, h, c) * grad.at(h, c);
                if (gates.is_query(lane, h, half))
                    grad_q.at(h, c) += grad.at(h, c) * pow2(away), grad_g.at(h, c) += product;
                else
                    grad_k.at(h, c) += grad.at(h, c) * pow2(-away), grad_g.at(h, c) -= product;
            }
        }
    }
}

// The gradients of a warp's tokens.
__device__ __forceinline__ void store_gradients(const GlaSmallBackward& p, const Line& line, int n, const Tokens& x,
                                                const BlockGates<K>& gates, const Operand& q, const Operand& k,
                                                const Product& added, const Product& state, const Product& state_grad, int lane) {
    Operand v = operand(x.v), grad_output = operand(x.grad_output);
    Operand start = operand<K>(scaled<K, V>(state, [&](int c) { return gates.start(c); }));
    Operand end = operand<K>(scaled<K, V>(state_grad, [&](int c) { return gates.rest(c); }));
    int first = n * BLOCK_TOKENS, rows = line.rows(n), keys = p.shape.key_size, head = opaque(line.head);

    float beyond[K / 4];
#pragma unroll
    for (int c = 0; c < K / 4; c++) {
        // From the numbers that the products below take: what they have in common cancels.
        float decay = gates.between(c);
        beyond[c] = (number(start, 0, c) * decay + added.at(0, c)) * number(end, 0, c) +
                    (number(start, 1, c) * decay + added.at(1, c)) * number(end, 1, c);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) beyond[c] += __shfl_xor_sync(~0u, beyond[c], lanes);
    }

    Product pairs{}, grad_v{};
    if (gates.strong)
        pairs = split_pairs(gates, x.q, x.k, p.scale, lane);
    else
        multiply<BLOCK_TOKENS>(pairs, k, q);
    multiply<V>(grad_v, kept(pairs, lane, [](int j, int i) { return j <= i; }), transpose<V>(grad_output));
    multiply<V>(grad_v, k, end);
    store_tokens<V, VECTOR>(lane_rows<V, T>(line.sequence, p.grad_v, head, opaque(first), lane), rows, p.shape.value_size, lane,
                            [&](int h, int c) { return grad_v.at(h, c); });

    Product grad_q{}, grad_k{}, grad_g{};
    multiply<K>(grad_q, grad_output, transpose<K>(start));
    multiply<K>(grad_k, v, transpose<K>(end));
    if (!gates.strong) {
        Product of_queries{}, of_keys{};
        multiply<BLOCK_TOKENS>(of_queries, grad_output, v);
        multiply<BLOCK_TOKENS>(of_keys, v, grad_output);
        multiply<K>(grad_q, kept(of_queries, lane, [](int i, int j) { return j < i; }), transpose<K>(k));
        multiply<K>(grad_k, kept(of_keys, lane, [](int j, int i) { return j < i; }), transpose<K>(q));
    }
#pragma unroll
    for (int c = 0; c < K / 4; c++) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            grad_g.at(h, c) = number(q, h, c) * grad_q.at(h, c) - number(k, h, c) * grad_k.at(h, c);
            grad_q.at(h, c) *= gates.query_decay(h, c), grad_k.at(h, c) *= gates.key_decay(h, c);
        }
    }
    if (gates.strong) add_split_gradients(gates, x, p.scale, lane, grad_q, grad_k, grad_g);

    float diagonal[2];
    dot_tokens<V>(diagonal, x.grad_output, x.v);
    store_tokens<K, VECTOR>(lane_rows<K, T>(line.sequence, p.grad_q, head, opaque(first), lane), rows, keys, lane,
                            [&](int h, int c) { return (grad_q.at(h, c) + diagonal[h] * x.k.at(h, c)) * p.scale; });
    store_tokens<K, VECTOR>(lane_rows<K, T>(line.sequence, p.grad_k, head, opaque(first), lane), rows, keys, lane,
                            [&](int h, int c) { return grad_k.at(h, c) + diagonal[h] * x.q.at(h, c) * p.scale; });
#pragma unroll
    for (int c = 0; c < K / 4; c++) {
        float sum = grad_g.at(0, c) + grad_g.at(1, c);
#pragma unroll
        for (int lanes = 4; lanes < 32; lanes *= 2) {
            float other = __shfl_down_sync(~0u, sum, lanes);
            if (lane + lanes < 32) sum += other;
        }
        float after = __shfl_down_sync(~0u, sum, 4);
        grad_g.at(1, c) += (lane < 28 ? after : 0.f) + beyond[c];
        grad_g.at(0, c) = sum + beyond[c];
    }
    store_tokens<K, VECTOR>(lane_rows<K, G>(line.sequence, p.grad_g, head, opaque(first), lane), rows, keys, lane,
                            [&](int h, int c) { return gates.is_limited(h, c) ? 0.f : grad_g.at(h, c); });
}

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) gla_small_backward(const __grid_constant__ GlaSmallBackward p) {
    Line line(p.shape, blockIdx.x);
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32, keys = p.shape.key_size, values = p.shape.value_size;
    float grad[THREAD_ELEMENTS];
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        StateElement<K, V> element(threadIdx.x + i * THREADS, keys, values);
        grad[i] = p.final_gradient && element.exists ? p.final_gradient[line.state_offset(p.shape) + element.place(values)] : 0.f;
    }

    GateSums<G> sums(lane);
    int last = (line.chunks - 1) / WARPS * WARPS;
    for (int first = last; first >= 0 && line.chunks > 0; first -= WARPS) {
        int n = first + warp;
        lane = opaque(lane);
        Tokens x;
        x.load(p, line, n, lane);
        float state[THREAD_ELEMENTS];
#pragma unroll
        for (int i = 0; i < THREAD_ELEMENTS; i++)
            if (int e = threadIdx.x + i * THREADS; e < ELEMENTS)
                state[i] = p.states[line.saved_state(p.shape, first) * ELEMENTS + e];

        BlockGates<K> gates(sums, x.g, lane);
        Operand q = operand_of<K>([&](int h, int c) { return x.q.at(h, c) * gates.query_decay(h, c) * p.scale; });
        Operand k = operand_of<K>([&](int h, int c) { return x.k.at(h, c) * gates.key_decay(h, c); });
        Product added{}, added_grad{};
        multiply<K>(added, transpose<V>(operand(x.v)), transpose<K>(k));
        multiply<K>(added_grad, transpose<V>(operand(x.grad_output)), transpose<K>(q));
        store_state<K>(states[warp], scaled<K, V>(added, [&](int c) { return gates.rest(c); }), lane);
        store_state<K>(state_grads[warp], scaled<K, V>(added_grad, [&](int c) { return gates.start(c); }), lane);
        if (lane < 4)
#pragma unroll
            for (int c = 0; c < K / 4; c++) decays[warp][lane * (K / 4) + c] = pow2(gates.sum(c));
        __syncthreads();
        add_up(state, grad);
        __syncthreads();
        gates.forget();
        if (n < line.chunks)
            store_gradients(p, line, n, x, gates, q, k, added, load_state<K>(states[warp], lane),
                            load_state<K>(state_grads[warp], lane), lane);
        __syncwarp(); // the states are read
    }

    if (!p.initial_gradient) return;
#pragma unroll
    for (int i = 0; i < THREAD_ELEMENTS; i++) {
        StateElement<K, V> element(threadIdx.x + i * THREADS, keys, values);
        if (element.exists) p.initial_gradient[line.state_offset(p.shape) + element.place(values)] = grad[i];
    }
}
