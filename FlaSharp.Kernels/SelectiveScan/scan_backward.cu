// The gradients of the selective scan (see fla/selective_scan.cuh). Against time, with g_t the gradient of C h_t + D u_t,
//     dh_t[n] = exp(delta_{t+1} A[n]) dh_{t+1}[n] + C_t[n] g_t,     p_t[n] = dh_t[n] exp(delta_t A[n]) h_{t-1}[n]
//     d(delta u)_t = sum of B_t dh_t,    ddelta_t = sum of A p_t + u_t d(delta u)_t,    dA = sum over t of delta_t p_t
//     dB_t[n] = sum over channels of dh_t[n] delta_t u_t,    dC_t[n] = sum over channels of h_t[n] g_t
//
// A tile's states come again from the one that the forward pass saved before it: first those before each PART of its steps, into
// shared memory; then, part by part from the end, all states and decays of a part into registers, where the walk back finds them.
//
// dB and dC are products of matrices over the channels of a warp. Every step adds its row [1, channels] of g or delta u, zeros in
// the other rows, times its [channels, states]: eight steps fill the accumulators. Operands are bfloat16, or, where the tensors
// are more precise, a sum of two of them. Warps are added up here, blocks leave `b_parts` and `c_parts`.
//
// Constants: those of fla/selective_scan.cuh with LANES = 4 and STEPS as SAVED_STEPS of the forward pass, SHARED_BYTES.
#include "fla/selective_scan.cuh"

using namespace fla;

constexpr int PART = 8;
constexpr int PARTS = STEPS / PART;
constexpr bool PRECISE = !same<Element, bf16>();
constexpr bool AHEAD = Column::COUNT == 1;  // whether the next tile is on its way in registers
static_assert(LANES == 4 && STEPS % PART == 0, "a warp has the 8 channels, and a part the 8 steps, of a matrix instruction");

struct SelectiveScanBackward {
    SelectiveScan scan;
    TensorView dy, du, ddelta, dz;  // [B, T, 1, E]
    const float* saved;             // [tokens / STEPS + S, E, N]: of the forward pass
    const float* final_gradient;    // [S, segments, E, N]: that of the state after a segment; or null for zeros
    float* initial_gradient;        // [S, E, N], or null
    float* running;                 // [S, segments, E, N]: where gradients of states wait; needed where N is more than a slice
    float* a_parts;                 // [S, segments, E, N]
    float* d_parts;                 // [S, segments, E], or null
    float* bias_parts;              // [S, segments, E], or null
    float* b_parts;                 // [blocks of a group, tokens, G, N]
    float* c_parts;                 // [blocks of a group, tokens, G, N]
    i64 tokens;
};

// Of a tile's steps, for each channel: delta, delta u, g, u. Exchanged positions in odd rows keep from meeting in a bank both a
// Column's threads and those that read the operands of matrix instructions.
struct StepRows {
    float4 rows[STEPS][CHANNELS];

    __device__ __forceinline__ float4& at(u32 step, int position) { return rows[step][position ^ step % 2 * 5]; }
};

// What a thread has of a step's B and C. Bfloat16 stays what it is: one access to shared memory, which is in demand, has all.
template <class> struct StoredFactor { using Type = float; };
template <> struct StoredFactor<bf16> { using Type = bf16; };
using Factor = StoredFactor<Element>::Type;

struct alignas(2 * STATES * sizeof(Factor)) Factors {
    Factor b[STATES], c[STATES];

    __device__ __forceinline__ States load_b() const {
        Vector<Factor, STATES> x;
        x.load(b);
        States floats;
#pragma unroll
        for (int n = 0; n < STATES; n++) floats.at[n] = x[n];
        return floats;
    }
    __device__ __forceinline__ void load(States& of_b, States& of_c) const {
        Vector<Factor, 2 * STATES> x;
        x.load(b);
#pragma unroll
        for (int n = 0; n < STATES; n++) of_b.at[n] = x[n], of_c.at[n] = x[STATES + n];
    }
    // A thread's part of a tile's.
    static __device__ __forceinline__ void store(Factors (&rows)[STEPS][LANES], const Cells& cells,
                                                 const Pack (&x)[Cells::COUNT]) {
        constexpr int AT_ONCE = VECTOR < STATES ? VECTOR : STATES;
#pragma unroll
        for (int i = 0; i < Cells::COUNT; i++) {
            if (Cells::DISTANCE > STEPS && cells.row >= STEPS) break;
#pragma unroll
            for (int n = 0; n < VECTOR; n += AT_ONCE) {
                Factors& to = rows[cells.row + i * Cells::DISTANCE][(cells.state + n) / STATES];
                float values[AT_ONCE];
#pragma unroll
                for (int j = 0; j < AT_ONCE; j++) values[j] = x[i][n + j];
                Vector<Factor, AT_ONCE> part;
                part.set(values), part.store((cells.matrix == 0 ? to.b : to.c) + cells.state % STATES);
            }
        }
    }
};

struct Shared {
    StepRows steps;
    float2 slope[Column::COUNT * VECTOR][THREADS];  // of delta by the raw one, of y by z; each thread's own
    Factors factors[STEPS][LANES];
    Sums y;                                         // C h
    Sums du, ddelta;                                // sums over states: of B dh, and of A p / ln(2)
    States starts[PARTS][THREADS];
    float sums[WARPS][STEPS][2][SLICE];             // of a warp's channels: of dC, of dB
    float2 totals[Column::COUNT * VECTOR][THREADS]; // of every STEPS-th step: of g u, of ddelta; each thread's own
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

struct Inputs {
    Pack u, delta, z, dy;
};

// Two neighbours as operands of a matrix instruction.
struct Operand {
    u32 high, low;  // low: what the rounding to high left

    __device__ __forceinline__ Operand(float a, float b) : high(Pair<bf16>::pack(a, b)), low(0) {
        if constexpr (PRECISE) low = Pair<bf16>::pack(a - Pair<bf16>::low(high), b - Pair<bf16>::high(high));
    }
    __device__ __forceinline__ void transpose() {
        high = transpose_8x8(high);
        if constexpr (PRECISE) low = transpose_8x8(low);
    }
    __device__ __forceinline__ void keep(bool condition) {
        high = condition ? high : 0;
        if constexpr (PRECISE) low = condition ? low : 0;
    }
};

// The sums over a warp's channels for a part's steps: this thread's are of step lane / 4, of the states of its Lane.
struct ChannelSums {
    float d[2][4] = {};  // two states; of each dC, dC, dB, dB

    // A step's states and their gradients, for rows that hold g and delta u of step lane / 4 and channels 2 (lane % 4).
    __device__ __forceinline__ void add(int step, Operand g, Operand input, const States& h, const States& dh) {
        bool own = threadIdx.x % 32 / 4 == step;
        g.keep(own), input.keep(own);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            Operand states(h.at[2 * half], h.at[2 * half + 1]), gradients(dh.at[2 * half], dh.at[2 * half + 1]);
            states.transpose(), gradients.transpose();
            u32 high[4] = {g.high, 0, 0, input.high}, low[4] = {g.low, 0, 0, input.low};
            mma_m16n8k16<bf16>(d[half], high, states.high, gradients.high);
            if constexpr (PRECISE) {
                mma_m16n8k16<bf16>(d[half], high, states.low, gradients.low);
                mma_m16n8k16<bf16>(d[half], low, states.high, gradients.high);
            }
        }
    }
    __device__ __forceinline__ void store(float (&sums)[2][SLICE], const Lane<1>& lane) const {
        *reinterpret_cast<float4*>(sums[0] + lane.state) = make_float4(d[0][0], d[0][1], d[1][0], d[1][1]);
        *reinterpret_cast<float4*>(sums[1] + lane.state) = make_float4(d[0][2], d[0][3], d[1][2], d[1][3]);
    }
};

// One step of the scan; the decays of its states.
__device__ __forceinline__ States advance(States& h, const States& rates, float delta, float input, const States& b) {
    States decays;
#pragma unroll
    for (int n = 0; n < STATES; n++) {
        decays.at[n] = pow2(delta * rates.at[n]);
        h.at[n] = fmaf(decays.at[n], h.at[n], input * b.at[n]);
    }
    return decays;
}

// A part's states again, its sums, and the walk back: dh is the gradient of the state after the part, then of that before it.
// `add`: whether the sums join those of other states.
__device__ __forceinline__ void walk_part(Shared& shared, const Lane<1>& lane, int part, bool add, const States& rates,
                                          States& dh, States& da) {
    int first = part * PART;
    auto put = [&](Sums& to, int step, const float (&x)[LANES]) {
        float& place = to.at(first + step + lane.index, lane.position);
        place = (add ? place : 0.f) + lane.sum(x);
    };
    States h = shared.starts[part][threadIdx.x];
    States states[PART], decays[PART];
    float sums[LANES], more[LANES];
#pragma unroll
    for (int i = 0; i < PART; i++) {
        float4 step = shared.steps.at(first + i, lane.position);
        const Factors& factors = shared.factors[first + i][lane.index];
        States b, c;
        if constexpr (GATED)
            factors.load(b, c);
        else
            b = factors.load_b();
        decays[i] = advance(h, rates, step.x, step.y, b);
        states[i] = h;
        if constexpr (GATED) {
            sums[i % LANES] = c.at[0] * h.at[0];
#pragma unroll
            for (int n = 1; n < STATES; n++) sums[i % LANES] = fmaf(c.at[n], h.at[n], sums[i % LANES]);
            if (i % LANES == LANES - 1) put(shared.y, i - LANES + 1, sums);
        }
    }

    __syncwarp();  // the walk back is not to begin before: its operands would take registers
    // What follows is not to be kept in registers from part to part.
    int thread = opaque(threadIdx.x), row = first + thread % 32 / 4, pair = thread / 32 * 8 + thread % 4 * 2;
    float4 one = shared.steps.at(row, pair), other = shared.steps.at(row, pair + 1);
    Operand g(one.z, other.z), input(one.y, other.y);
    ChannelSums channels;
#pragma unroll
    for (int i = PART - 1; i >= 0; i--) {
        float4 step = shared.steps.at(first + i, lane.position);
        States b, c;
        shared.factors[first + i][lane.index].load(b, c);
        States before = i > 0 ? states[i - 1] : shared.starts[part][threadIdx.x];
        float& input_gradient = sums[i % LANES];
        float& exponent_gradient = more[i % LANES];
#pragma unroll
        for (int n = 0; n < STATES; n++) dh.at[n] = fmaf(c.at[n], step.z, dh.at[n]);
        channels.add(i, g, input, states[i], dh);
#pragma unroll
        for (int n = 0; n < STATES; n++) {
            input_gradient = n == 0 ? b.at[n] * dh.at[n] : fmaf(b.at[n], dh.at[n], input_gradient);
            dh.at[n] *= decays[i].at[n];
            float p = dh.at[n] * before.at[n];
            da.at[n] = fmaf(p, step.x, da.at[n]);
            exponent_gradient = n == 0 ? p * rates.at[n] : fmaf(p, rates.at[n], exponent_gradient);
        }
        if (i % LANES == 0) {
            put(shared.du, i, sums);
            put(shared.ddelta, i, more);
        }
    }
    channels.store(shared.sums[threadIdx.x / 32][first + threadIdx.x % 32 / 4], lane);
}

// Of a multiprocessor, which before Hopper has shared memory for two at most.
#if __CUDA_ARCH__ >= 900
constexpr int BLOCKS = PRECISE || VECTOR == 1 ? 2 : 3;
#else
constexpr int BLOCKS = 2;
#endif

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS)
    selective_scan_backward(const __grid_constant__ SelectiveScanBackward p) {
    Shared& shared = shared_memory_as<Shared>();
    ScanBlock block(p.scan, blockIdx.x);
    Column column(block);
    Cells cells;
    Lane<1> lane(threadIdx.x);
    int slices = (p.scan.states + SLICE - 1) / SLICE, end = block.end;
    // Computed where it is needed: the walk needs the registers.
    auto place = [&](int slice, i64 index) { return StatePlace(p.scan, block, Lane<1>(opaque(threadIdx.x)), index, slice); };
    i64 slot = block.first_token(p.scan) / STEPS + block.sequence.index, part = block.part(p.scan);

    int tiles = (end - block.first + STEPS - 1) / STEPS, last = block.first + (tiles - 1) * STEPS;
    auto shared_total = [&](int i, int v) -> float2& { return shared.totals[i * VECTOR + v][threadIdx.x]; };
#pragma unroll
    for (int i = 0; i < Column::COUNT; i++)
#pragma unroll
        for (int v = 0; v < VECTOR; v++) shared_total(i, v) = make_float2(0, 0);

    Inputs inputs;
    Pack matrix[Cells::COUNT];
    auto load_inputs = [&](int first, int i) {
        bool exists = i * Column::DISTANCE < column.left(first, end);
        column.strand(p.scan.u, block, first).load(inputs.u, i, exists);
        column.strand(p.scan.delta, block, first).load(inputs.delta, i, exists);
        column.strand(p.dy, block, first).load(inputs.dy, i, exists);
        if (GATED) column.strand(p.scan.z, block, first).load(inputs.z, i, exists);
    };
    auto load_matrices = [&](int first, int slice) {
        cells.strand(p.scan, block, first).load(matrix, cells.left(first, end, slice, p.scan.states), slice * SLICE);
    };
    if (tiles > 0) {
        if (AHEAD) load_inputs(last, 0);
        load_matrices(last, 0);
    }

    States dh = {}, da = {}, rates = {};
    if (tiles == 0) {
        __syncthreads();
        for (int slice = 0; slice < slices; slice++) {
            if (block.segment == 0 && p.initial_gradient)
                place(slice, block.sequence.index).store(p.initial_gradient, place(slice, part).load(p.final_gradient));
            place(slice, part).store(p.a_parts, da);
        }
    }
#pragma unroll 1
    for (int first = last; first >= block.first; first -= STEPS) {
        int steps = min(STEPS, end - first), left = column.left(first, end);
        auto bias = column.load(p.scan.delta_bias, block);
#pragma unroll 1
        for (int i = 0; i < Column::COUNT; i++) {
            if (!AHEAD) load_inputs(first, i);
            int row = column.row + i * Column::DISTANCE;
            bool exists = i * Column::DISTANCE < left;
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                float x = inputs.u[v], g = inputs.dy[v], gate_gradient = 0;
                StepSize size(exists ? inputs.delta[v] + bias[v] : StepSize::NONE);
                if constexpr (GATED) {
                    float z = inputs.z[v], s = sigmoid(z);
                    gate_gradient = g * s * fmaf(z, 1 - s, 1.f);
                    g *= z * s;
                }
                shared.steps.at(row, column.position(v)) = make_float4(size.value, size.value * x, g, x);
                shared.slope[i * VECTOR + v][threadIdx.x] = make_float2(size.slope, gate_gradient);
            }
        }
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            Factors::store(shared.factors, cells, matrix);
            if (slice + 1 < slices) {
                load_matrices(first, slice + 1);
            } else if (first > block.first) {
                load_matrices(first - STEPS, 0);
                if (AHEAD) load_inputs(first - STEPS, 0);
            }
            if (slices > 1 || first == last) {
                dh = place(slice, part).load(first == last ? p.final_gradient : p.running);
                da = first == last ? States{} : place(slice, part).load(p.a_parts);
                rates = place(slice, 0).load_decays(p.scan.a);
            }
            States h = place(slice, slot + first / STEPS).load(p.saved);
            __syncthreads();

            int parts = (steps + PART - 1) / PART;
            shared.starts[0][threadIdx.x] = h;
#pragma unroll 1
            for (int next = 1; next < parts; next++) {
#pragma unroll
                for (int i = (next - 1) * PART; i < next * PART; i++) {
                    float4 step = shared.steps.at(i, lane.position);
                    advance(h, rates, step.x, step.y, shared.factors[i][lane.index].load_b());
                }
                shared.starts[next][threadIdx.x] = h;
            }
#pragma unroll 1
            for (int walked = parts - 1; walked >= 0; walked--) walk_part(shared, lane, walked, slice > 0, rates, dh, da);

            if (slices > 1 || first == block.first) {
                if (first == block.first && block.segment == 0) {
                    if (p.initial_gradient) place(slice, block.sequence.index).store(p.initial_gradient, dh);
                } else if (slices > 1) {
                    place(slice, part).store(p.running, dh);
                }
                place(slice, part).store(p.a_parts, da);
            }
            __syncthreads();

            // Four states of dC or dB for each thread at a time.
            int thread = opaque(threadIdx.x);
#pragma unroll
            for (int i = thread; i - thread < STEPS * 2 * SLICE / 4; i += THREADS) {
                int step = i / (2 * SLICE / 4), matrix = i / (SLICE / 4) % 2, state = i % (SLICE / 4) * 4;
                if (step >= steps) break;
                float4 sum = *reinterpret_cast<const float4*>(shared.sums[0][step][matrix] + state);
#pragma unroll
                for (int warp = 1; warp < WARPS; warp++) {
                    float4 more = *reinterpret_cast<const float4*>(shared.sums[warp][step][matrix] + state);
                    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
                }
                int present = p.scan.states - slice * SLICE - state;
                i64 row = (block.group_block * p.tokens + block.first_token(p.scan) + first + step) * p.scan.groups + block.group;
                float* to = (matrix == 0 ? p.c_parts : p.b_parts) + row * p.scan.states + slice * SLICE + state;
                if (p.scan.states % 4 == 0) {
                    if (present > 0) *reinterpret_cast<float4*>(to) = sum;
                } else {
                    if (present > 0) to[0] = sum.x;
                    if (present > 1) to[1] = sum.y;
                    if (present > 2) to[2] = sum.z;
                    if (present > 3) to[3] = sum.w;
                }
            }
        }

        auto skip = column.load(p.scan.d, block);
#pragma unroll 1
        for (int i = 0; i < Column::COUNT; i++) {
            int row = column.row + i * Column::DISTANCE;
            float du[VECTOR], ddelta[VECTOR], dz[VECTOR];
#pragma unroll
            for (int v = 0; v < VECTOR; v++) {
                int position = column.position(v);
                float4 step = shared.steps.at(row, position);
                float2 slope = shared.slope[i * VECTOR + v][threadIdx.x];
                float input_gradient = shared.du.at(row, position);
                du[v] = fmaf(input_gradient, step.x, skip[v] * step.z);
                ddelta[v] = fmaf(input_gradient, step.w, LN2 * shared.ddelta.at(row, position)) * slope.x;
                if (GATED) dz[v] = fmaf(skip[v], step.w, shared.y.at(row, position)) * slope.y;
                float2& total = shared_total(i, v);
                total = make_float2(fmaf(step.z, step.w, total.x), total.y + (i * Column::DISTANCE < left ? ddelta[v] : 0.f));
            }
            if (i * Column::DISTANCE < left) {
                Pack pack;
                pack.set(du), column.strand(p.du, block, first).store(pack, i);
                pack.set(ddelta), column.strand(p.ddelta, block, first).store(pack, i);
                if (GATED) pack.set(dz), column.strand(p.dz, block, first).store(pack, i);
            }
        }
        __syncthreads();
    }

    if (threadIdx.x < block.channels) {
        float d = 0, bias = 0;
#pragma unroll 4
        for (int row = 0; row < STEPS; row++) {
            int i = row / Column::DISTANCE, thread = row % Column::DISTANCE * PACKS + threadIdx.x / VECTOR;
            float2 total = shared.totals[i * VECTOR + threadIdx.x % VECTOR][thread];
            d += total.x, bias += total.y;
        }
        i64 to = part * p.scan.channels + block.first_channel + threadIdx.x;
        if (p.d_parts) p.d_parts[to] = d;
        if (p.bias_parts) p.bias_parts[to] = bias;
    }
}
