// Gated linear attention backward: the pairs of tokens within those chunks whose decays are too strong for a frame, which
// gla_chunk_backward leaves out. At each level of binary splitting (gate_frame.cuh), with X the queries and keys scaled by
// their decays to and from the border between the halves, Y = (dA + dA^T) X holds the gradients of both.
#include "fla/gla_backward.cuh"
#include "fla/pair_rows.cuh"
#include "fla/warp_tile.cuh"

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int K = KEY_TILE, V = VALUE_TILE, C = CHUNK;
constexpr int WARPS = C * K < 1024 ? C * K / 64 : 16, THREADS = 32 * WARPS; // a thread has two key channels of a token or more

typedef ChunkGates<C, K, THREADS> Gates;
typedef OperandOf<T>::Type Operand;
typedef SharedTile<Operand, C, K> KeyTile;
typedef SharedTile<Operand, C, V> ValueTile;
typedef SharedTile<Operand, C, C> PairTile;
typedef FloatTile<C, K> GradTile;
typedef PairRows<C, WARPS / 2> Pairs; // half of the warps have A, half dA
typedef Pair<T>::Type Loaded; // two numbers
typedef GlaChunk<C> Chunk;

constexpr int Q = 0, KEY = Q + KeyTile::BYTES, SPLIT = KEY + KeyTile::BYTES, PAIRS = SPLIT + KeyTile::BYTES;
constexpr int GRAD_PAIRS = PAIRS + PairTile::BYTES, DIAGONAL = GRAD_PAIRS + PairTile::BYTES, TOTALS = DIAGONAL + C * 4;
constexpr int VALUE = TOTALS + Gates::STRIPS * K * 4, GRAD_OUTPUT = VALUE + ValueTile::BYTES, GRADS = VALUE;
constexpr int END_OF_SHARED = 2 * ValueTile::BYTES > GradTile::BYTES ? VALUE + 2 * ValueTile::BYTES : VALUE + GradTile::BYTES;
static_assert(END_OF_SHARED == SHARED);

// Adds two neighbouring numbers to those in global memory.
template <class X> __device__ __forceinline__ void add_pair(X* there, int cols, float x, float y) {
    store_pair<VECTOR>(there, cols, to_float(there[0]) + x, cols > 1 ? to_float(there[1]) + y : 0.f);
}

// dA + dA^T at one level, as a left operand.
__device__ __forceinline__ void load_level(u32 (&a)[4], const SharedTile<bf16, C, C>& grad_pairs, int row, int col, int half,
                                           int lane) {
    u32 upper[4];
    load_left(a, grad_pairs, row, col, lane);
    load_left_transposed(upper, grad_pairs, col, row, lane);
#pragma unroll
    for (int e = 0; e < 4; e++) {
        int i = row + lane / 4 + e % 2 * 8, j = col + lane % 4 * 2 + e / 2 * 8;
        a[e] = (a[e] | upper[e]) & ((apart(i, j, half) ? 0xffffu : 0u) | (apart(i, j + 1, half) ? 0xffff0000u : 0u));
    }
}
template <class Tile>
__device__ __forceinline__ void load_level(TermFragment& a, const Tile& grad_pairs, int row, int col, int half, int lane) {
#pragma unroll
    for (int t = 0; t < 2; t++) load_level(a.of[t], grad_pairs.term(t), row, col, half, lane);
}

// The gradients of the chunk's queries, or of its keys. Adds q dq or subtracts k dk in grad_g.
__device__ __forceinline__ void add_gradients(const GlaChunkBackward& p, const Chunk& chunk, u32 memory, const Gates& gates,
                                              bool of_queries, float (&grad_g)[Gates::ROWS][2]) {
    int thread = opaque(threadIdx.x), lane = thread % 32;
    KeyTile q(memory + Q), k(memory + KEY), split(memory + SPLIT), own = of_queries ? q : k, other = of_queries ? k : q;
    PairTile grad_pairs(memory + GRAD_PAIRS);
    GradTile grads(memory + GRADS);
    Gates::Totals totals(memory + TOTALS);
    float added[Gates::ROWS][2], factor = of_queries ? p.scale : 1.f, sign = of_queries ? 1.f : -1.f;
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++) { // the pairs (t, t)
        float diagonal = p.scale * shared_load<float>(memory + DIAGONAL + (gates.row + i) * 4);
        Loaded pair = shared_load<Loaded>(other.at(gates.row + i, gates.col));
        added[i][0] = diagonal * Pair<T>::low(pair), added[i][1] = diagonal * Pair<T>::high(pair);
    }
#pragma unroll 1
    for (int half = C / 2; half > 0; half /= 2) {
        gates.split<T>(split, q, k, half, p.scale, totals);
        __syncthreads();
        WarpTile<C, K, WARPS, KeyTile::Fragment> grad(thread / 32, lane);
        grad.add<C>([&](auto& a, int row, int col) { load_level(a, grad_pairs, row, col, half, lane); },
                    [&](auto& b, int row, int col) { load_right(b, split, row, col, lane); });
        grad.visit([&](int row, int col, float& x, float& y) { shared_store(grads.at(row, col), make_float2(x, y)); });
        __syncthreads();
        float2 ys[Gates::ROWS];
        Loaded owns[Gates::ROWS];
#pragma unroll
        for (int i = 0; i < Gates::ROWS; i++) {
            ys[i] = shared_load<float2>(grads.at(gates.row + i, gates.col));
            owns[i] = shared_load<Loaded>(own.at(gates.row + i, gates.col));
        }
        gates.visit_level(half, totals, [&](int i, bool query, float2 decay) {
            if (query != of_queries) return;
            float2 y = ys[i];
            Loaded pair = owns[i];
            y.x *= decay.x * factor, y.y *= decay.y * factor;
            added[i][0] += y.x, added[i][1] += y.y;
            grad_g[i][0] += sign * Pair<T>::low(pair) * y.x, grad_g[i][1] += sign * Pair<T>::high(pair) * y.y;
        });
    }
    auto target = chunk.rows_of<T>(of_queries ? p.grad_q : p.grad_k, chunk.block.head);
    int cols = p.shape.key_size - gates.col;
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++)
        if (gates.row + i < chunk.rows && cols > 0)
            add_pair(target[chunk.first + gates.row + i] + gates.col, cols, added[i][0], added[i][1]);
}

__device__ __forceinline__ void add_chunk(const GlaChunkBackward& p, const Chunk& chunk) {
    u32 memory = shared_memory();
    int thread = opaque(threadIdx.x), warp = thread / 32, lane = thread % 32;
    KeyTile q(memory + Q), k(memory + KEY);
    ValueTile v(memory + VALUE), grad_output(memory + GRAD_OUTPUT);
    PairTile pair_tile(memory + PAIRS), grad_pairs(memory + GRAD_PAIRS);
    Gates::Totals totals(memory + TOTALS);
    Gates gates(thread);
    bool limited = load_gates<G, VECTOR>(p, chunk, gates, [&] {
        load<VECTOR, THREADS>(chunk, q, p.q, chunk.block.head, p.shape.key_size);
        load<VECTOR, THREADS>(chunk, k, p.k, chunk.kv_head, p.shape.key_size);
        load<VECTOR, THREADS>(chunk, v, p.v, chunk.kv_head, p.shape.value_size);
        load<VECTOR, THREADS>(chunk, grad_output, p.grad_output, chunk.block.head, p.shape.value_size);
        copy_async_commit();
    });
    gates.store_totals(totals);
    copy_async_wait<0>();
    __syncthreads();
    gates.join(totals);
    to_bf16<T, THREADS>(v, thread);
    to_bf16<T, THREADS>(grad_output, thread);
    __syncthreads();

    Pairs pairs(warp % (WARPS / 2), lane);
    if (warp >= WARPS / 2) {
        if (!Pairs::SPARE || pairs.exist()) {
            pairs.multiply(grad_output, v);
            pairs.store_diagonal(memory + DIAGONAL);
            pairs.mask([](int i, int j) { return j < i; });
            pairs.store(grad_pairs);
        }
        pairs.first = Pairs::DOWN; // no rows of A
    }
    add_split_pairs<T>(pairs, gates, q, k, KeyTile(memory + SPLIT), p.scale, totals, [] { __syncthreads(); });
    if (pairs.exist()) pairs.store(pair_tile);
    __syncthreads();

    WarpTile<C, V, WARPS, KeyTile::Fragment> grad_v(warp, lane);
    grad_v.add<C>([&](auto& a, int row, int depth) { load_left_transposed(a, pair_tile, depth, row, lane); },
                  [&](auto& b, int depth, int col) { load_right(b, grad_output, depth, col, lane); });
    auto value_target = chunk.rows_of<T>(p.grad_v, chunk.block.head);
    grad_v.visit([&](int row, int col, float& x, float& y) {
        int cols = p.shape.value_size - col;
        if (row < chunk.rows && cols > 0) add_pair(value_target[chunk.first + row] + col, cols, x, y);
    });
    __syncthreads(); // the gradients of the outputs are read

    float grad_g[Gates::ROWS][2] = {};
#pragma unroll 1
    for (int of_queries = 0; of_queries < 2; of_queries++) add_gradients(p, chunk, memory, gates, of_queries, grad_g);

    float2 beyond = make_float2(0.f, 0.f);
    gates.sum_to_end(grad_g, beyond, totals, [] { __syncthreads(); });
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++) grad_g[i][0] += beyond.x, grad_g[i][1] += beyond.y;
    if (limited) clear_limited<G, VECTOR>(p, chunk, gates, grad_g);
    auto gate_target = chunk.rows_of<G>(p.grad_g, chunk.block.head);
    int cols = p.shape.key_size - gates.col;
#pragma unroll
    for (int i = 0; i < Gates::ROWS; i++)
        if (gates.row + i < chunk.rows && cols > 0)
            add_pair(gate_target[chunk.first + gates.row + i] + gates.col, cols, grad_g[i][0], grad_g[i][1]);
    __syncthreads();
}

// A small grid: each block looks at the marks of its chunks, THREADS at a time.
extern "C" __global__ void __launch_bounds__(THREADS, 1) gla_chunk_backward_pairs(const __grid_constant__ GlaChunkBackward p) {
    __shared__ u32 marks[WARPS];
    for (i64 first = blockIdx.x; first < p.blocks; first += (i64)THREADS * gridDim.x) {
        i64 mine = first + (i64)threadIdx.x * gridDim.x;
        bool strong = false;
        if (mine < p.blocks) {
            Chunk chunk(p, (int)mine);
            strong = chunk.block.chunks > 0 && (p.plain_states[chunk.slot] || p.plain_grads[chunk.slot]);
        }
        u32 of_warp = __ballot_sync(~0u, strong);
        if (threadIdx.x % 32 == 0) marks[threadIdx.x / 32] = of_warp;
        __syncthreads();
        for (int warp = 0; warp < WARPS; warp++)
            for (u32 left = marks[warp]; left != 0; left &= left - 1)
                add_chunk(p, Chunk(p, (int)(first + (i64)(warp * 32 + __ffs(left) - 1) * gridDim.x)));
        __syncthreads();
    }
}
