// Gated linear attention forward of small heads, K = V = 8, by clusters: a warp takes BLOCKS times 16 tokens of HEADS heads in a
// row, which lie side by side in memory, a block WARPS such, and CLUSTER blocks a whole sequence.
//
// Each warp finds what its tokens get from one another, and what they add to the state. The states before all of them come from
// two sums: within each block, and, through the shared memory of the later blocks, of the blocks before it.
#include "fla/cluster.cuh"
#include "fla/small_heads.cuh"
#include "fla/tma.cuh"

using namespace fla;

typedef TYPE T;
typedef GATE_TYPE G;
constexpr int SIZE = 8, HEADS = 4; // 64 bytes of each token, one piece of 16 bytes a head
constexpr int THREADS = 32 * WARPS, INPUT_BYTES = BLOCK_TOKENS * HEADS * 16, TILE_BYTES = 4 * INPUT_BYTES;
constexpr int STATE = SIZE * SIZE, STATES = HEADS * STATE;
constexpr int SAVED_BLOCKS = SAVED_EVERY / BLOCK_TOKENS;
constexpr int INBOXES = CLUSTER > 1 ? CLUSTER - 1 : 1;
static_assert(STATES <= THREADS, "a thread has an element of a state or none");
static_assert(BLOCKS <= 2 && SAVED_BLOCKS % BLOCKS == 0, "states to be saved are such before a warp's tokens");
typedef GlaBlock<BLOCK_TOKENS, SAVED_EVERY> Line;
typedef Cluster<CLUSTER> Blocks;

// With BOXES, of q, k, v and g: all heads of a token are its columns.
struct InputMaps {
    TensorMap maps[4];
};
struct GlaSmallCluster : InputMaps, GlaSmallForward {};

// Decays of all of a warp's tokens, of those before the middle of each of its blocks, and of a block's halves.
struct Decays {
    float all[HEADS][SIZE], to_middle[BLOCKS][HEADS][SIZE], first_half[HEADS][SIZE], second_half[HEADS][SIZE];
};
// What each warp's tokens add to the states of its heads; then the states before the tokens. A state's elements are in a
// product's order, which for this size is [V, K].
struct Sums {
    float states[WARPS][STATES];
    Decays decays[WARPS];
};
__shared__ __align__(16) Sums all_sums[1 + BOXES]; // the second one: of the rehearsal
// What each of the blocks before this one makes of an element: what it adds and its decay.
__shared__ __align__(16) float2 inbox[INBOXES][STATES];
__shared__ __align__(8) u64 inbox_barrier, tokens_barriers[WARPS][BLOCKS];

// Where one head's piece of a token lies in an input's tile: as a box is copied; else pieces that are written or read at once are
// in different banks.
__device__ __forceinline__ u32 place(int token, int head) {
    if (BOXES) return token * 64 + ((head ^ token / 2) & 3) * 16;
    int row = token / 2;
    return row * 128 + (((token % 2 * HEADS + head) ^ row) & 7) * 16;
}

// Matrices of 8 x 8: those of a head's even and odd tokens, one head after the other.
template <bool TRANSPOSED> __device__ __forceinline__ void load(u32 (&of)[HEADS][2], u32 input, int lane) {
#pragma unroll
    for (int i = 0; i < HEADS; i += 2) {
        u32 row = input + place(lane % 8 * 2 + lane / 8 % 2, i + lane / 16), loaded[4];
        if constexpr (TRANSPOSED)
            ldmatrix_x4_trans(loaded, row);
        else
            ldmatrix_x4(loaded, row);
        of[i][0] = loaded[0], of[i][1] = loaded[1], of[i + 1][0] = loaded[2], of[i + 1][1] = loaded[3];
    }
}

// Those of one head as rows.
template <class X> __device__ __forceinline__ TokenRows<X, SIZE> rows_of(const u32 (&of)[2]) { return {{{of[0]}, {of[1]}}}; }
// If they have been loaded transposed, as an operand with tokens as columns.
__device__ __forceinline__ Operand as_transposed(const Operand& x) { return {{x.of[0], 0, x.of[1], 0}}; }

__device__ __forceinline__ float2 load_pair(const float* from) { return *reinterpret_cast<const float2*>(from); }
__device__ __forceinline__ void store_pair(float* to, float2 x) { *reinterpret_cast<float2*>(to) = x; }
__device__ __forceinline__ float2 operator*(float2 a, float2 b) { return make_float2(a.x * b.x, a.y * b.y); }
__device__ __forceinline__ float2 operator+(float2 a, float2 b) { return make_float2(a.x + b.x, a.y + b.y); }

// A state as an operand that queries read.
__device__ __forceinline__ Operand to_read(float2 state) { return {{Pair<bf16>::pack(state.x, state.y)}}; }

// One head of a block once its warp has worked on it: queries to read the state before, and outputs without what they read.
struct Part {
    static constexpr int BYTES = 768; // of a warp's
    Operand q;
    Product out;

    __device__ __forceinline__ void store(u32 at, int lane) const {
        shared_store(at + lane * 16, make_float4(out.of[0][0], out.of[0][1], out.of[0][2], out.of[0][3]));
        shared_store(at + 512 + lane * 8, make_uint2(q.of[0], q.of[1]));
    }
    __device__ __forceinline__ void load(u32 at, int lane) {
        float4 x = shared_load<float4>(at + lane * 16);
        uint2 y = shared_load<uint2>(at + 512 + lane * 8);
        *this = {{{y.x, y.y}}, {{{x.x, x.y, x.z, x.w}}}};
    }
};

// What a warp's tokens add to the states of its heads, and how these decay: a lane has decays of two channels of head lane / 8.
struct Change {
    float2 added[HEADS]{}, decay = make_float2(1.f, 1.f);
};

// What is the same for all blocks.
struct Constants {
    Operand from_middle, half_sums, causal; // the first two: of a product with log-decays
    float scale;
    int lane, channel;
    bool second; // whether this lane's row of a product with half_sums is the second half's

    __device__ __forceinline__ Constants(float scale, int lane)
        : causal(causal_mask(lane)), scale(scale), lane(lane), channel(lane % 4 * 2), second(lane / 4 % 2) {
        u32 ones = Pair<G>::pack(1.f, 1.f), minus_ones = Pair<G>::pack(-1.f, -1.f);
        u32 half = opaque(lane % 4 / 2 == second ? ones : 0);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            half_sums.of[i] = half;
            from_middle.of[i] = opaque(lane % 4 < 2 ? ~causal.of[i] & minus_ones : causal.of[i] & ones);
        }
    }
};

// Works on a block whose decays are too strong for a frame in some head: here each has its origins at the edges. Apart from all
// other code, which is faster in a row. Leaves parts in place of the tokens, and adds these to the change that is in `states` and
// `decays`.
__device__ __noinline__ void attend_strongly(u32 tile, float* states, float* decays, float scale) {
    int lane = threadIdx.x % 32, channel = lane % 4 * 2;
    GateSums<G> sums(lane);
    Operand causal = causal_mask(lane);
    u32 tokens[4][HEADS][2]; // of q, k, v, g
#pragma unroll
    for (int i = 0; i < 4; i++) load<false>(tokens[i], tile + i * INPUT_BYTES, lane);
    __syncwarp(); // all are read
#pragma unroll 1
    for (int i = 0; i < HEADS; i++) {
        auto its = [&](int input) {
            TokenRows<T, SIZE> rows = rows_of<T>(tokens[input][0]);
#pragma unroll
            for (int j = 1; j < HEADS; j++)
                if (i == j) rows = rows_of<T>(tokens[input][j]);
            return rows;
        };
        TokenRows<T, SIZE> q = its(0), k = its(1), v = its(2), log_decays = its(3);
        TokenRows<G, SIZE> g{{{log_decays.pair[0][0]}, {log_decays.pair[1][0]}}};
        BlockGates<SIZE> gates(sums, g, lane);
        gates.strong = true;
        Part part{};
        part.q = operand_of<SIZE>([&](int h, int c) { return q.at(h, c) * scale * gates.query_decay(h, c); });
        Operand key = operand_of<SIZE>([&](int h, int c) { return k.at(h, c) * gates.key_decay(h, c); });
        Operand value = transpose<SIZE>(operand(v));
        Product added{};
        multiply<SIZE>(part.out, masked(operand<BLOCK_TOKENS>(split_pairs(gates, q, k, scale, lane)), causal), value);
        multiply<SIZE>(added, value, transpose<SIZE>(key));
        float* its_state = states + i * STATE + lane * 2;
        float2 decay = make_float2(pow2(gates.sum(0)), pow2(gates.sum(1))), state = load_pair(its_state);
        multiply<SIZE, SIZE>(part.out, part.q, to_read(state));
        store_pair(its_state, state * decay + make_float2(added.of[0][0], added.of[0][1]));
        if (lane < 4) store_pair(decays + i * SIZE + channel, load_pair(decays + i * SIZE + channel) * decay);
        part.store(tile + i * Part::BYTES, lane);
    }
    __syncwarp();
}

// Works on a block of a warp, the next one.
template <int BLOCK>
__device__ __forceinline__ void attend(Part (&parts)[HEADS], Change& change, float* states, Decays& decays, u32 tile,
                                       const Constants& x) {
    constexpr bool FIRST = BLOCK == 0;
    float* to_middle = decays.to_middle[BLOCK][0];
    u32 q[HEADS][2], k[HEADS][2], v[HEADS][2], g[HEADS][2]; // v and g transposed
    load<true>(g, tile + 3 * INPUT_BYTES, x.lane);
    load<false>(q, tile, x.lane);
    load<false>(k, tile + INPUT_BYTES, x.lane);
    load<true>(v, tile + 2 * INPUT_BYTES, x.lane);
    // Log-decays from the middle of the tokens, and of their halves: a lane has those of one half of head lane / 8.
    Product away[HEADS]{};
    float2 half = make_float2(0.f, 0.f);
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        u32 even = max_nan_pair<G>(g[i][0], MIN_LOG_DECAY_PAIR<G>), odd = max_nan_pair<G>(g[i][1], MIN_LOG_DECAY_PAIR<G>);
        Operand gates = {{even, 0, odd, 0}};
        Product halves{};
        multiply<SIZE, BLOCK_TOKENS, G>(away[i], x.from_middle, gates);
        multiply<SIZE, BLOCK_TOKENS, G>(halves, x.half_sums, gates);
#pragma unroll
        for (int j = 0; j < 4; j++) away[i].of[0][j] *= LOG2E;
        if (x.lane / 8 == i) half = make_float2(halves.of[0][0], halves.of[0][1]);
    }
    half.x *= LOG2E, half.y *= LOG2E;
    bool strong = half.x < -MAX_FRAME || half.y < -MAX_FRAME; // no token is further from the middle, as decays are at most 1
    int at = x.lane / 8 * SIZE + x.channel; // of this lane's decays
    if (__builtin_expect(__any_sync(~0u, strong), false)) {
#pragma unroll
        for (int i = 0; i < HEADS; i++) store_pair(states + i * STATE + x.lane * 2, change.added[i]);
        if (!x.second) store_pair(decays.all[0] + at, change.decay), store_pair(to_middle + at, change.decay);
        __syncwarp();
        attend_strongly(tile, states, decays.all[0], x.scale);
#pragma unroll
        for (int i = 0; i < HEADS; i++) {
            change.added[i] = load_pair(states + i * STATE + x.lane * 2);
            parts[i].load(tile + i * Part::BYTES, x.lane);
        }
        change.decay = load_pair(decays.all[0] + at);
        __syncwarp(); // two lanes have the same decays, and one of them writes them again
        return;
    }
    half = make_float2(pow2(half.x), pow2(half.y));
    store_pair((x.second ? decays.second_half[0] : decays.first_half[0]) + at, half);
    float2 other = make_float2(__shfl_xor_sync(~0u, half.x, 4), __shfl_xor_sync(~0u, half.y, 4));
    if (!x.second) store_pair(to_middle + at, FIRST ? half : change.decay * half);
    change.decay = FIRST ? half * other : change.decay * half * other;
    __syncwarp(); // each lane needs those of all heads
#pragma unroll
    for (int i = 0; i < HEADS; i++) {
        TokenRows<T, SIZE> queries = rows_of<T>(q[i]), keys = rows_of<T>(k[i]);
        parts[i].q = operand_of<SIZE>([&](int h, int c) { return queries.at(h, c) * x.scale * pow2(away[i].at(h, c)); });
        Operand key = operand_of<SIZE>([&](int h, int c) { return keys.at(h, c) * pow2(-away[i].at(h, c)); });
        Operand value = operand(rows_of<T>(v[i])), keys_by = transpose<SIZE>(key); // value: of[0], of[1]
        Product pairs{}, even{}, odd{};
        multiply<BLOCK_TOKENS, SIZE>(pairs, parts[i].q, key);
        parts[i].out = Product{};
        multiply<SIZE>(parts[i].out, masked(operand<BLOCK_TOKENS>(pairs), x.causal), as_transposed(value));
        // Of even tokens with their keys in the first rows, of odd ones with theirs in the others.
        multiply<SIZE, SIZE>(even, value, Operand{{keys_by.of[0]}});
        multiply<SIZE, SIZE>(odd, value, Operand{{keys_by.of[2]}});
        float2 added = make_float2(even.of[0][0] + odd.of[0][2], even.of[0][1] + odd.of[0][3]);
        if (!FIRST) {
            float2 at_middle = change.added[i] * load_pair(decays.first_half[i] + x.channel);
            multiply<SIZE, SIZE>(parts[i].out, parts[i].q, to_read(at_middle));
            added = added + at_middle;
        }
        change.added[i] = added * load_pair(decays.second_half[i] + x.channel);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, WARPS > 8 ? 1 : 2) __cluster_dims__(CLUSTER, 1, 1)
    gla_small_forward_cluster(const __grid_constant__ GlaSmallCluster p) {
    int warp = __shfl_sync(~0u, threadIdx.x / 32, 0), lane = threadIdx.x % 32; // the same in all lanes, as the compiler sees
    int rank = Blocks::rank(), first_head = blockIdx.y * HEADS;
    Sequences sequences = p.shape.sequences;
    if (BOXES) sequences.offsets = nullptr, sequences.reverse = 0; // they come in the order of memory
    Line line(sequences, first_head, blockIdx.x / CLUSTER);
    int n = (rank * WARPS + warp) * BLOCKS, first = n * BLOCK_TOKENS, left = line.sequence.length - first;
    u32 memory = shared_memory() + warp * (BLOCKS * TILE_BYTES);
    Mbarrier tokens{shared_address(tokens_barriers[warp])};
    auto tokens_of = [&](int b) { return Mbarrier{tokens.address + b * Mbarrier::BYTES}; };
    if (BOXES) {
        if (lane == 0) {
#pragma unroll
            for (int b = 0; b < BLOCKS; b++) tokens_of(b).init(1);
            fence_barriers();
        }
        __syncwarp();
    }
    auto piece = [&](const TensorView& view, int head, int token) {
        i64 at = (u32)line.sequence.batch * view.batch + (u32)head * view.head;
        at += ((int)line.sequence.start + (first + token) * line.sequence.step) * view.time;
        return static_cast<u16*>(view.data) + at;
    };
    int its_head = first_head + lane % HEADS;
    // Every eighth lane copies two tokens of an input at once.
    int input = lane / 8, token = lane / HEADS % 2;
    const TensorView& view = p.inputs[input];
    const u16* from = piece(view, input == 0 || p.shape.group == 1 ? its_head : its_head / p.shape.group, token);
    i64 stride = (line.sequence.step < 0 ? -view.time : view.time) * 2;
    u32 piece_at = memory + input * INPUT_BYTES + lane % 8 * 16;
    auto fetch = [&](int b) {
        if (BOXES) {
            if (lane == 0 && left > b * BLOCK_TOKENS) {
                tokens_of(b).arrive_expecting(TILE_BYTES);
#pragma unroll
                for (int i = 0; i < 4; i++)
                    copy_box(memory + b * TILE_BYTES + i * INPUT_BYTES, p.maps[i], first_head * SIZE, 0,
                             first + b * BLOCK_TOKENS, line.sequence.index, tokens_of(b));
            }
            return;
        }
        if (left > b * BLOCK_TOKENS) {
#pragma unroll
            for (int i = 0; i < BLOCK_TOKENS / 2; i++) {
                copy_async<16>((piece_at ^ i * 16) + b * TILE_BYTES + i * 128, from, token + b * BLOCK_TOKENS + 2 * i < left);
                from += stride;
            }
        }
        copy_async_commit();
    };
    auto await = [&](int b) {
        if (BOXES)
            tokens_of(b).wait(0);
        else if (b < BLOCKS - 1)
            copy_async_wait<BLOCKS - 1>();
        else
            copy_async_wait<0>();
        __syncwarp(); // what other lanes have copied
    };
    fetch(0); // as soon as can be: where caches are cold, code comes from memory as well
    Mbarrier arrivals{shared_address(&inbox_barrier)};
    if (threadIdx.x == 0) arrivals.init(1);
    __syncwarp(); // for racecheck, to which it is the whole warp that makes a barrier
    Blocks::arrive();
    if (threadIdx.x == 0) arrivals.arrive_expecting(rank * (STATES * sizeof(float2)));
    Constants constants(p.scale, lane); // while copies begin
    if (BLOCKS > 1) fetch(1);
    // A thread has an element of a state.
    u32 element = threadIdx.x;
    auto dense = [&] {
        i64 at = (i64)line.sequence.index * p.shape.heads + first_head + (u32)opaque(element) / STATE;
        return (at * SIZE + element % SIZE) * SIZE + element % STATE / SIZE;
    };
    if (element < STATES && p.initial) prefetch(p.initial + dense());

    Blocks::wait(); // all have begun

    // With BOXES, while the tokens come, one warp goes through what follows them, for nothing: its code is near when it counts.
    int its_left = left;
    u32 its_memory = memory;
#pragma unroll 1
    for (int pass = BOXES && warp == 0 ? 0 : 1; pass < 2; pass++) {
        bool real = !BOXES || opaque(pass) == 1;
        Sums& sums = all_sums[real ? 0 : BOXES];
        auto sync = [&] {
            __syncwarp();
            if (real) __syncthreads();
        };
        left = real ? its_left : 0;
        memory = real ? its_memory : shared_address(&sums);
        Part parts[BLOCKS][HEADS]{};
        Change change;
        Decays& its_decays = sums.decays[warp];
        float* its_states = &sums.states[warp][lane * 2];
        if (left > 0) {
            await(0);
            attend<0>(parts[0], change, sums.states[warp], its_decays, memory, constants);
            if (BLOCKS > 1) {
                __syncwarp(); // its tokens are read: parts take their place, which leaves registers for the next block
#pragma unroll
                for (int i = 0; i < HEADS; i++) parts[0][i].store(memory + i * Part::BYTES, lane);
            }
        }
        if (BLOCKS > 1 && left > BLOCK_TOKENS) {
            await(1);
            attend<BLOCKS - 1>(parts[BLOCKS - 1], change, sums.states[warp], its_decays, memory + TILE_BYTES, constants);
        }
#pragma unroll
        for (int i = 0; i < HEADS; i++) store_pair(its_states + i * STATE, change.added[i]);
        if (!constants.second) store_pair(its_decays.all[lane / 8] + constants.channel, change.decay);
        sync();

        // Sums of elements. States of a block's warps follow one another, and so do the blocks'.
        Rows<u16> to{piece(p.o, its_head, lane / HEADS), line.sequence.step < 0 ? -p.o.time : p.o.time};
        if (element < STATES) {
            float added[WARPS], decay[WARPS];
            float2 all = make_float2(0.f, 1.f);
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                added[w] = sums.states[w][element];
                decay[w] = sums.decays[w].all[element / STATE][element % SIZE];
            }
#pragma unroll
            for (int w = 0; w < WARPS; w++) all.x = all.x * decay[w] + added[w], all.y *= decay[w];
#pragma unroll
            for (int later = 1; later < CLUSTER; later++)
                if (real && rank < later) Blocks::store(shared_address(&inbox[rank][element]), later, all, arrivals);
            to.first = opaque_global(to.first);
            float state = p.initial ? p.initial[dense()] : 0.f;
            if (real) arrivals.wait(0);
            float2 before[CLUSTER];
#pragma unroll
            for (int b = 0; b < CLUSTER - 1; b++) before[b] = real && b < rank ? inbox[b][element] : make_float2(0.f, 1.f);
#pragma unroll
            for (int b = 0; b < CLUSTER - 1; b++) state = state * before[b].y + before[b].x;
#pragma unroll
            for (int w = 0; w < WARPS; w++) {
                sums.states[w][element] = state;
                state = state * decay[w] + added[w];
            }
            if (real && p.final && rank == CLUSTER - 1) p.final[dense()] = state;
        }
        sync();

        if (BLOCKS > 1) {
#pragma unroll
            for (int i = 0; i < HEADS; i++) parts[0][i].load(memory + i * Part::BYTES, lane);
            __syncwarp();
        }
        float2 before[HEADS];
#pragma unroll
        for (int i = 0; i < HEADS; i++) before[i] = load_pair(its_states + i * STATE);
        __syncwarp(); // outputs of the rehearsal come there
#pragma unroll
        for (int b = 0; b < BLOCKS; b++) {
            u32 outputs[2][HEADS];
#pragma unroll
            for (int i = 0; i < HEADS; i++) {
                Part& part = parts[b][i];
                float2 state = before[i] * load_pair(its_decays.to_middle[b][i] + constants.channel);
                multiply<SIZE, SIZE>(part.out, part.q, to_read(state));
#pragma unroll
                for (int h = 0; h < 2; h++) outputs[h][i] = Pair<T>::pack(part.out.at(h, 0), part.out.at(h, 1));
            }
            u32 tile = memory + b * TILE_BYTES;
#pragma unroll
            for (int h = 0; h < 2; h++) stmatrix_x4(tile + place(lane % 8 * 2 + h, lane / 8), outputs[h]);
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 2 * BLOCKS; i++) {
            int token = lane / HEADS + i * 8;
            u32 at = memory + i / 2 * TILE_BYTES + place(token % BLOCK_TOKENS, lane % HEADS);
            if (token < left) *reinterpret_cast<uint4*>(to[i * 8]) = shared_load<uint4>(at);
        }
        if (p.states && n % SAVED_BLOCKS == 0 && left > 0) {
            constexpr int COUNT = StateElement<SIZE, SIZE>::COUNT;
            float* saved = p.states + (line.slot(p.shape.sequences, n) * p.shape.heads + first_head) * COUNT;
#pragma unroll
            for (int i = 0; i < HEADS; i++) store_state<SIZE>(saved + i * COUNT, Product{{{before[i].x, before[i].y}}}, lane);
        }
    }
}
