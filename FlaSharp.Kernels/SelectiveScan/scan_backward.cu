// The gradients of the selective scan (see fla/selective_scan.cuh). Against time, with g_t the gradient of C h_t + D u_t,
//     dh_t[n] = exp(delta_{t+1} A[n]) dh_{t+1}[n] + C_t[n] g_t,     p_t[n] = dh_t[n] exp(delta_t A[n]) h_{t-1}[n]
//     d(delta u)_t = sum of B_t dh_t,    ddelta_t = sum of A p_t + u_t d(delta u)_t,    dA = sum over t of delta_t p_t
//     dB_t[n] = sum over channels of dh_t[n] delta_t u_t,    dC_t[n] = sum over channels of h_t[n] g_t
//
// A warp has 16 channels, rows of matrix instructions. A tile's states come again from the one that the forward pass saved before
// it: first those before each PART of its steps, into shared memory; then, part by part from the end, all states and decays of a
// part into registers, where the walk back finds them.
//
// Sums over states or channels and the products delta u B and g C are matrix instructions for a single step. Their other operand
// has eight steps, zeros for all but one: a part fills the accumulators of its sums. Operands are bfloat16, or, where that is not
// enough, a sum of two of them. Warps are added up here, blocks leave `b_parts` and `c_parts`.
//
// Constants: those of fla/selective_scan.cuh with LANES = 2 and STEPS as SAVED_STEPS of the forward pass, SHARED_BYTES.
#include "fla/selective_scan.cuh"

using namespace fla;

constexpr int PART = 8;
constexpr int PARTS = STEPS / PART;
constexpr int ROWS = 16;  // channels of a warp
constexpr bool PRECISE = !same<Element, bf16>();
static_assert(CHANNELS == ROWS * WARPS && SLICE == 16 && STEPS % PART == 0, "matrix instructions have 16 rows and 8 columns");

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

// What a thread has: in a scan the channels 2 row and 2 row + 1 of its warp, four states of each from 4 quad on; of tensors
// [T, channels] and [T, N] step `row` of a part, four channels or states from 4 quad on.
struct Place {
    int warp, row, quad;

    __device__ __forceinline__ explicit Place(u32 thread) : warp(thread / 32), row(thread % 32 / 4), quad(thread % 4) {}
};

// A thread's states as matrix instructions have them: the first two of both channels, then the others.
struct alignas(16) Block {
    float at[2][4];

    static __device__ __forceinline__ int channel(int i) { return i / 2; }
};

// Of a tensor [..., E, N].
struct BlockPlace {
    i64 offset;
    int channels, states;
    int row;

    __device__ __forceinline__ BlockPlace(const SelectiveScan& p, const ScanBlock& block, const Place& own, i64 index, int slice) {
        int channel = own.warp * ROWS + 2 * own.row, state = slice * SLICE + 4 * own.quad;
        row = p.states;
        offset = (index * p.channels + block.first_channel + channel) * row + state;
        channels = block.channels - channel;
        states = min(row - state, 4);
    }
    // Zeros without a tensor.
    __device__ __forceinline__ Block load(const float* tensor) const {
        Block x = {};
        if (tensor == nullptr) return x;
#pragma unroll
        for (int channel = 0; channel < 2; channel++) {
            const float* from = tensor + offset + channel * row;
            if (channel >= channels) break;
            if (states == 4 && whole(from)) {
                float4 four = *reinterpret_cast<const float4*>(from);
                x.at[0][2 * channel] = four.x, x.at[0][2 * channel + 1] = four.y;
                x.at[1][2 * channel] = four.z, x.at[1][2 * channel + 1] = four.w;
            } else {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (n < states) x.at[n / 2][2 * channel + n % 2] = from[n];
            }
        }
        return x;
    }
    __device__ __forceinline__ void store(float* tensor, const Block& x) const {
#pragma unroll
        for (int channel = 0; channel < 2; channel++) {
            float* to = tensor + offset + channel * row;
            if (channel >= channels) break;
            float four[4] = {x.at[0][2 * channel], x.at[0][2 * channel + 1], x.at[1][2 * channel], x.at[1][2 * channel + 1]};
            if (states == 4 && whole(to)) {
                *reinterpret_cast<float4*>(to) = make_float4(four[0], four[1], four[2], four[3]);
            } else {
#pragma unroll
                for (int n = 0; n < 4; n++)
                    if (n < states) to[n] = four[n];
            }
        }
    }

private:
    static __device__ __forceinline__ bool whole(const float* p) { return reinterpret_cast<u64>(p) % 16 == 0; }
};

// Four neighbours in a tensor, of which `count` exist; the others are zeros.
struct Four {
    Vector<Element, 4> x;

    __device__ __forceinline__ void load(const Element* from, int count) {
        if constexpr (VECTOR == 1) {
            float values[4];
#pragma unroll
            for (int i = 0; i < 4; i++) values[i] = i < count ? to_float(from[i]) : 0.f;
            x.set(values);
        } else if (count > 0) {
            x.load(from);
        } else {
            x.clear();
        }
    }
    static __device__ __forceinline__ void store(Element* to, int count, const float (&values)[4]) {
        if constexpr (VECTOR == 1) {
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (i < count) to[i] = from_float<Element>(values[i]);
        } else if (count > 0) {
            Vector<Element, 4> x;
            x.set(values), x.store(to);
        }
    }
};

// A thread's part of a tile of tensors [T, channels].
struct FourColumns {
    const ScanBlock& block;
    int step, first, channels, left;  // left: steps to the end

    static __device__ __forceinline__ int channel(const Place& own) { return own.warp * ROWS + 4 * own.quad; }

    __device__ __forceinline__ FourColumns(const Place& own, const ScanBlock& block, int tile)
        : block(block), step(tile + own.row), first(channel(own)), channels(block.channels - first), left(tile < block.first ? 0 : block.end - step) {}

    __device__ __forceinline__ int count(int part) const { return part * PART < left ? min(channels, 4) : 0; }
    __device__ __forceinline__ void load(Four (&x)[PARTS], const TensorView& view) const {
        const Element* from = at(view);
#pragma unroll
        for (int part = 0; part < PARTS; part++) x[part].load(from + part * PART * view.time, count(part));
    }
    __device__ __forceinline__ void store(const TensorView& view, int part, const float (&x)[4]) const {
        Four::store(at(view) + part * PART * view.time, count(part), x);
    }

private:
    __device__ __forceinline__ Element* at(const TensorView& view) const {
        return block.row(view, 0, step) + block.first_channel + first;
    }
};

// Two neighbours as operands of a matrix instruction; SPLIT: with what the rounding left.
template <bool SPLIT> struct Operand {
    u32 high, low;

    __device__ __forceinline__ Operand(float a, float b) : high(Pair<bf16>::pack(a, b)), low(0) {
        if constexpr (SPLIT) low = Pair<bf16>::pack(a - Pair<bf16>::low(high), b - Pair<bf16>::high(high));
    }
    __device__ __forceinline__ explicit Operand(u32 exact) : high(exact), low(0) {}
    __device__ __forceinline__ void transpose() {
        high = transpose_8x8(high);
        if constexpr (SPLIT) low = transpose_8x8(low);
    }
    __device__ __forceinline__ void keep(bool condition) {
        high = condition ? high : 0;
        if constexpr (SPLIT) low = condition ? low : 0;
    }
};
using Factor = Operand<PRECISE>;

// States of step `row` of a part.
__device__ __forceinline__ Factor states_of(const Four& x, int half) {
    if constexpr (PRECISE)
        return Factor(x.x[2 * half], x.x[2 * half + 1]);
    else
        return Factor(x.x.words[half]);
}

// A number for each step of a part and channel of a warp, or state; a thread's own four are of step `row`.
struct Numbers {
    float4 at[32];

    __device__ __forceinline__ float4& own() { return at[threadIdx.x % 32]; }
    __device__ __forceinline__ float2 channels(int step, const Place& place) const {
        return reinterpret_cast<const float2*>(at)[step * (ROWS / 2) + place.row];
    }
    __device__ __forceinline__ float4 states(int step, const Place& place) const { return at[step * (SLICE / 4) + place.quad]; }
};

// Sums over states, which matrix instructions leave to those that have a channel.
struct Sums3 {
    static constexpr int ROW = ROWS + 4;
    float rows[PART][ROW];

    __device__ __forceinline__ float4 own(const Place& place) const {
        return *reinterpret_cast<const float4*>(rows[place.row] + 4 * place.quad);
    }
    __device__ __forceinline__ float2& at(const Place& place, int i) {
        return *reinterpret_cast<float2*>(rows[2 * place.quad + i] + 2 * place.row);
    }
    __device__ __forceinline__ void load(float (&x)[4], const Place& place) {
#pragma unroll
        for (int i = 0; i < 2; i++) x[i] = at(place, i).x, x[2 + i] = at(place, i).y;
    }
    __device__ __forceinline__ void store(const float (&x)[4], const Place& place) {
#pragma unroll
        for (int i = 0; i < 2; i++) at(place, i) = make_float2(x[i], x[2 + i]);
    }
};

// Numbers of a part's steps and a warp's channels, as factors of products with others of states, and of sums over channels.
template <bool> struct FactorOf {
    u32 at[2][2];  // of even and of odd steps: both channels, as sums of two

    __device__ __forceinline__ explicit FactorOf(float4 x) {
        Operand<true> parts[2] = {{x.x, x.z}, {x.y, x.w}};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            parts[i].transpose();
            at[0][i] = __byte_perm(parts[i].high, parts[i].low, 0x5410);
            at[1][i] = __byte_perm(parts[i].high, parts[i].low, 0x7632);
        }
    }
    __device__ __forceinline__ FactorOf(Numbers& x) : FactorOf(x.own()) {}

    // The same from where it was stored.
    static __device__ __forceinline__ FactorOf load(Numbers& from) {
        FactorOf x(0);
        float4 bits = from.own();
        x.at[0][0] = __float_as_uint(bits.x), x.at[0][1] = __float_as_uint(bits.y);
        x.at[1][0] = __float_as_uint(bits.z), x.at[1][1] = __float_as_uint(bits.w);
        return x;
    }
    static __device__ __forceinline__ void store(Numbers& to, float4 x) {
        FactorOf y(x);
        to.own() = make_float4(__uint_as_float(y.at[0][0]), __uint_as_float(y.at[0][1]), __uint_as_float(y.at[1][0]),
                               __uint_as_float(y.at[1][1]));
    }
    // Of step `row`, every second one of four channels.
    __device__ __forceinline__ Factor row(int i) const {
        Factor x(__byte_perm(at[0][i], at[1][i], 0x5410));
        x.transpose();
        return x;
    }

private:
    __device__ __forceinline__ explicit FactorOf(int) {}
};
template <> struct FactorOf<true> {
    Numbers& numbers;

    __device__ __forceinline__ FactorOf(Numbers& x) : numbers(x) {}
    static __device__ __forceinline__ FactorOf load(Numbers& from) { return from; }
    static __device__ __forceinline__ void store(Numbers& to, float4 x) { to.own() = x; }
    __device__ __forceinline__ Factor row(int i) const {
        float4 x = numbers.own();
        return i == 0 ? Factor(x.x, x.z) : Factor(x.y, x.w);
    }
};
using ChannelFactor = FactorOf<PRECISE>;

// Products of a number of each channel and one of each state, for the steps of a part. With bfloat16 for the states, an
// instruction makes them of both halves of the first factor, for four steps, of which the second one has only one.
template <bool> struct ProductsOf {
    FactorOf<false> channels;
    u32 states[2][2];  // of even and of odd steps

    __device__ __forceinline__ ProductsOf(const FactorOf<false>& channels, Numbers&, const Four& factor) : channels(channels) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            u32 pair = transpose_8x8(factor.x.words[i]);
            states[0][i] = __byte_perm(pair, pair, 0x1010);
            states[1][i] = __byte_perm(pair, pair, 0x3232);
        }
    }
    __device__ __forceinline__ Block at(int step, const Place& place) const {
        Block x = {};
#pragma unroll
        for (int half = 0; half < 2; half++)
            mma_m16n8k8<bf16>(x.at[half], channels.at[step % 2], place.quad == step / 2 ? states[step % 2][half] : 0);
        return x;
    }
};
template <> struct ProductsOf<true> {
    FactorOf<true> channels;
    const Numbers& states;

    __device__ __forceinline__ ProductsOf(const FactorOf<true>& channels, Numbers& room, const Four& factor)
        : channels(channels), states(room) {
        __syncwarp();
        room.own() = make_float4(factor.x[0], factor.x[1], factor.x[2], factor.x[3]);
        __syncwarp();
    }
    __device__ __forceinline__ Block at(int step, const Place& place) const {
        float2 a = channels.numbers.channels(step, place);
        float4 b = states.states(step, place);
        return {{{a.x * b.x, a.x * b.y, a.y * b.x, a.y * b.y}, {a.x * b.z, a.x * b.w, a.y * b.z, a.y * b.w}}};
    }
};
using Products = ProductsOf<PRECISE>;

// What a warp has of a tile.
struct WarpTile {
    Numbers delta[PARTS], input[PARTS], g[PARTS];  // input: delta u
    Numbers slope[PARTS], gate[PARTS];             // of delta by the raw one, of y by z
    Sums3 y[PARTS], du[PARTS], ddelta[PARTS];      // sums over states: of C h, of B dh, of A p / ln(2)
    float4 starts[PARTS][2][32], totals[2][32];    // totals of a thread's numbers: of g u, of ddelta
    Numbers room[1];  // states of a part, where tensors are precise

    __device__ __forceinline__ void store_start(int part, const Block& h) {
#pragma unroll
        for (int i = 0; i < 2; i++)
            starts[part][i][threadIdx.x % 32] = make_float4(h.at[i][0], h.at[i][1], h.at[i][2], h.at[i][3]);
    }
    __device__ __forceinline__ Block start(int part) const {
        float4 a = starts[part][0][threadIdx.x % 32], b = starts[part][1][threadIdx.x % 32];
        return {{{a.x, a.y, a.z, a.w}, {b.x, b.y, b.z, b.w}}};
    }
};

struct Inputs {
    Four u[PARTS], delta[PARTS], dy[PARTS], z[PARTS];
};

struct Shared {
    WarpTile warps[WARPS];
    ScanBlock block;
    float sums[WARPS][STEPS][2][SLICE];  // of a warp's channels: of dC, of dB
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

// Numbers of a step's states and channels, as the first operand of products over states.
struct FirstOperand {
    u32 high[4], low[4];

    __device__ __forceinline__ explicit FirstOperand(const Block& x) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            Factor pair(x.at[i / 2][i % 2 * 2], x.at[i / 2][i % 2 * 2 + 1]);
            high[i] = pair.high, low[i] = pair.low;
        }
    }
    // Adds the sums over states to those of a step of the part.
    __device__ __forceinline__ void sum(float (&d)[4], bool own, Factor first, Factor second) const {
        first.keep(own), second.keep(own);
        mma_m16n8k16<bf16>(d, high, first.high, second.high);
        if constexpr (PRECISE) {
            mma_m16n8k16<bf16>(d, high, first.low, second.low);
            mma_m16n8k16<bf16>(d, low, first.high, second.high);
        }
    }
    __device__ __forceinline__ Factor transposed(int i) const {
        Factor x(high[i]);
        if constexpr (PRECISE) x.low = low[i];
        x.transpose();
        return x;
    }
};

// The sums over a warp's channels for a part's steps 2 quad and 2 quad + 1.
struct ChannelSums {
    float d[4] = {};

    // A step's numbers, by factors of the channels that are those of step `row`.
    __device__ __forceinline__ void add(bool own, Factor first, Factor second, const FirstOperand& x) {
        first.keep(own), second.keep(own);
        u32 high[4], low[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            Factor transposed = x.transposed(i % 2 * 2 + i / 2);
            high[i] = transposed.high, low[i] = transposed.low;
        }
        mma_m16n8k16<bf16>(d, high, first.high, second.high);
        if constexpr (PRECISE) {
            mma_m16n8k16<bf16>(d, high, first.low, second.low);
            mma_m16n8k16<bf16>(d, low, first.high, second.high);
        }
    }
    __device__ __forceinline__ void store(float (*sums)[2][SLICE], int matrix, const Place& place) const {
        int state = place.row / 2 * 4 + place.row % 2;
#pragma unroll
        for (int i = 0; i < 4; i++) sums[2 * place.quad + i % 2][matrix][state + i / 2 * 2] = d[i];
    }
};

// One step of the scan; the decays of its states.
__device__ __forceinline__ Block advance(Block& h, const Block& rates, float2 delta, const Block& input) {
    Block decays;
#pragma unroll
    for (int half = 0; half < 2; half++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            decays.at[half][i] = pow2((i < 2 ? delta.x : delta.y) * rates.at[half][i]);
            h.at[half][i] = fmaf(decays.at[half][i], h.at[half][i], input.at[half][i]);
        }
    return decays;
}

// A part's states again, with y and dC, and the walk back: dh is the gradient of the state after the part, then of that before
// it. Sums over states join those of other slices if `add`.
__device__ __forceinline__ void walk_part(WarpTile& tile, float (*channel_sums)[2][SLICE], int part, bool add, const Block& rates,
                                          const Four& b, const Four& c, Block& dh, Block& da) {
    Place place(threadIdx.x);
    Block h = tile.start(part), states[PART], decays[PART];
    {
        ChannelFactor g = tile.g[part];
        Products inputs(ChannelFactor::load(tile.input[part]), tile.room[0], b);
        Factor rows[2] = {g.row(0), g.row(1)};
        ChannelSums dc;
        float y[4] = {};
        if (GATED && add) tile.y[part].load(y, place);
#pragma unroll
        for (int i = 0; i < PART; i++) {
            decays[i] = advance(h, rates, tile.delta[part].channels(i, place), inputs.at(i, place));
            states[i] = h;
            FirstOperand operand(h);
            if (GATED) operand.sum(y, place.row == i, states_of(c, 0), states_of(c, 1));
            dc.add(place.row == i, rows[0], rows[1], operand);
        }
        if (GATED) tile.y[part].store(y, place);
        dc.store(channel_sums, 0, place);
    }

    __syncwarp();  // the walk back is not to begin before: its operands would take registers
    ChannelFactor input = ChannelFactor::load(tile.input[part]);
    Products gradients(tile.g[part], tile.room[0], c);
    Factor rows[2] = {input.row(0), input.row(1)};
    ChannelSums db;
    float du[4] = {}, ddelta[4] = {};
    if (add) tile.du[part].load(du, place), tile.ddelta[part].load(ddelta, place);
#pragma unroll
    for (int i = PART - 1; i >= 0; i--) {
        bool own = place.row == i;
        float2 delta = tile.delta[part].channels(i, place);
        Block product = gradients.at(i, place), before = i > 0 ? states[i - 1] : tile.start(part);
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < 4; n++) dh.at[half][n] += product.at[half][n];
        FirstOperand operand(dh);
        operand.sum(du, own, states_of(b, 0), states_of(b, 1));
        db.add(own, rows[0], rows[1], operand);

        float exponents[2][2];  // of both channels two sums of A p / ln(2)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int n = 0; n < 4; n++) {
                dh.at[half][n] *= decays[i].at[half][n];
                float p = dh.at[half][n] * before.at[half][n];
                da.at[half][n] = fmaf(p, n < 2 ? delta.x : delta.y, da.at[half][n]);
                float& sum = exponents[n / 2][half];
                sum = n % 2 == 0 ? p * rates.at[half][n] : fmaf(p, rates.at[half][n], sum);
            }
        u32 one = own ? 0x3f803f80 : 0;
        Factor sums[2] = {{exponents[0][0], exponents[0][1]}, {exponents[1][0], exponents[1][1]}};
        mma_m16n8k8<bf16>(ddelta, {sums[0].high, sums[1].high}, one);
        if constexpr (PRECISE) mma_m16n8k8<bf16>(ddelta, {sums[0].low, sums[1].low}, one);
    }
    tile.du[part].store(du, place), tile.ddelta[part].store(ddelta, place);
    db.store(channel_sums, 1, place);
}

extern "C" __global__ void __launch_bounds__(THREADS, 8 / WARPS)
    selective_scan_backward(const __grid_constant__ SelectiveScanBackward p) {
    Shared& shared = shared_memory_as<Shared>();
    ScanBlock& block = shared.block;
    if (threadIdx.x == 0) block = ScanBlock(p.scan, blockIdx.x);
    __syncthreads();
    int slices = (p.scan.states + SLICE - 1) / SLICE;
    // Computed where it is needed: the walk needs the registers.
    auto place_here = [&] { return Place(opaque(threadIdx.x)); };
    auto states_at = [&](int slice, i64 index) { return BlockPlace(p.scan, block, place_here(), index, slice); };
    int tiles = (block.end - block.first + STEPS - 1) / STEPS, last = block.first + (tiles - 1) * STEPS;
    WarpTile& tile = shared.warps[threadIdx.x / 32];
    auto& channel_sums = shared.sums[threadIdx.x / 32];
    int lane = threadIdx.x % 32;

    // Of [T, channels].
    auto vector = [&](const float* x, float (&values)[4]) {
        Vector<float, 4> four;
        int at = FourColumns::channel(place_here()), left = x ? block.channels - at : 0;
        x += block.first_channel + at;
        if (VECTOR > 1 && left > 0)
            four.load(x);
        else
            four.clear();
#pragma unroll
        for (int i = 0; i < 4; i++) values[i] = VECTOR == 1 && i < left ? x[i] : four[i];
    };
    // Of [T, N].
    auto load_states = [&](Four& x, const TensorView& view, int step, int slice) {
        Place own = place_here();
        int state = slice * SLICE + 4 * own.quad;
        x.load(block.row(view, block.group, step + own.row) + state,
               step + own.row < block.end ? min(p.scan.states - state, 4) : 0);
    };

    tile.totals[0][lane] = tile.totals[1][lane] = make_float4(0, 0, 0, 0);
    Inputs inputs;
    auto load_inputs = [&](int first) {
        FourColumns columns(place_here(), block, first);
        columns.load(inputs.u, p.scan.u), columns.load(inputs.delta, p.scan.delta), columns.load(inputs.dy, p.dy);
        if (GATED) columns.load(inputs.z, p.scan.z);
    };
    auto load_saved = [&](int first, int slice) {
        i64 slot = block.first_token(p.scan) / STEPS + block.sequence.index + first / STEPS;
        return states_at(slice, slot).load(p.saved);
    };
    load_inputs(last);

    Block dh = {}, da = {}, rates = {};
    if (tiles == 0) {
        for (int slice = 0; slice < slices; slice++) {
            if (block.segment == 0 && p.initial_gradient)
                states_at(slice, block.sequence.index).store(p.initial_gradient, states_at(slice, block.part(p.scan)).load(p.final_gradient));
            states_at(slice, block.part(p.scan)).store(p.a_parts, da);
        }
    }
#pragma unroll 1
    for (int first = last; first >= block.first; first -= STEPS) {
        int steps = min(STEPS, block.end - first), parts = (steps + PART - 1) / PART;
        Block h = load_saved(first, 0);
        Four b, c;
        load_states(b, p.scan.b, first, 0);
        {
            FourColumns columns(place_here(), block, first);
            float bias[4];
            vector(p.scan.delta_bias, bias);
#pragma unroll
            for (int part = 0; part < PARTS; part++) {
                int present = columns.count(part);
                float sizes[4], slopes[4], products[4], gradients[4], gates[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    StepSize size(i < present ? inputs.delta[part].x[i] + bias[i] : StepSize::NONE);
                    sizes[i] = size.value, slopes[i] = size.slope;
                    products[i] = size.value * inputs.u[part].x[i];
                    gradients[i] = inputs.dy[part].x[i];
                    if constexpr (GATED) {
                        float g = gradients[i], gate = inputs.z[part].x[i], s = sigmoid(gate);
                        gradients[i] = g * (gate * s);
                        gates[i] = g * s * fmaf(gate, 1 - s, 1.f);
                    }
                }
                auto four = [](const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); };
                tile.delta[part].own() = four(sizes), tile.slope[part].own() = four(slopes);
                ChannelFactor::store(tile.input[part], four(products));
                tile.g[part].own() = four(gradients);
                if (GATED) tile.gate[part].own() = four(gates);
            }
        }
        Four u[PARTS];
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            if (slices > 1 || first == last) {
                dh = states_at(slice, block.part(p.scan)).load(first == last ? p.final_gradient : p.running);
                da = first == last ? Block{} : states_at(slice, block.part(p.scan)).load(p.a_parts);
                rates = states_at(slice, 0).load(p.scan.a);
#pragma unroll
                for (int i = 0; i < 8; i++) rates.at[i / 4][i % 4] *= LOG2E;
            }
            if (slice > 0) {
                h = load_saved(first, slice);
                load_states(b, p.scan.b, first, slice);
            }
            __syncwarp();
            tile.store_start(0, h);
#pragma unroll 1
            for (int part = 0; part + 1 < parts; part++) {
                Place place(threadIdx.x);
                Products inputs(ChannelFactor::load(tile.input[part]), tile.room[0], b);
                load_states(b, p.scan.b, first + (part + 1) * PART, slice);
#pragma unroll
                for (int i = 0; i < PART; i++) advance(h, rates, tile.delta[part].channels(i, place), inputs.at(i, place));
                tile.store_start(part + 1, h);
            }
            __syncthreads();  // sums of the turn before have been read
#pragma unroll 1
            for (int part = parts - 1; part >= 0; part--) {
                Four of_b = b;
                load_states(c, p.scan.c, first + part * PART, slice);
                if (part > 0) load_states(b, p.scan.b, first + (part - 1) * PART, slice);
                walk_part(tile, channel_sums + part * PART, part, slice > 0, rates, of_b, c, dh, da);
            }

            if (slices > 1 || first == block.first) {
                if (first == block.first && block.segment == 0) {
                    if (p.initial_gradient) states_at(slice, block.sequence.index).store(p.initial_gradient, dh);
                } else if (slices > 1) {
                    states_at(slice, block.part(p.scan)).store(p.running, dh);
                }
                states_at(slice, block.part(p.scan)).store(p.a_parts, da);
            }
            FourColumns(place_here(), block, first).load(u, p.scan.u);
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

        load_inputs(first - STEPS);  // zeros before the first tile
        FourColumns columns(place_here(), block, first);
        float skip[4];
        vector(p.scan.d, skip);
        float4 totals[2] = {tile.totals[0][lane], tile.totals[1][lane]};
        Place place(threadIdx.x);
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            if (part >= parts) break;
            auto at = [](const float4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; };
            float4 delta = tile.delta[part].own(), slope = tile.slope[part].own(), g = tile.g[part].own(), gate = tile.gate[part].own();
            float4 y = tile.y[part].own(place), input = tile.du[part].own(place), exponents = tile.ddelta[part].own(place);
            float du[4], ddelta[4], dz[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = u[part].x[i];
                du[i] = fmaf(at(input, i), at(delta, i), skip[i] * at(g, i));
                ddelta[i] = fmaf(at(input, i), x, LN2 * at(exponents, i)) * at(slope, i);
                if (GATED) dz[i] = fmaf(skip[i], x, at(y, i)) * at(gate, i);
                reinterpret_cast<float*>(&totals[0])[i] += at(g, i) * x;
                reinterpret_cast<float*>(&totals[1])[i] += i < columns.count(part) ? ddelta[i] : 0.f;
            }
            columns.store(p.du, part, du), columns.store(p.ddelta, part, ddelta);
            if (GATED) columns.store(p.dz, part, dz);
        }
        tile.totals[0][lane] = totals[0], tile.totals[1][lane] = totals[1];
    }

    // Totals of channels are over the rows of a warp.
    float totals[2][4];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float& sum = totals[i / 4][i % 4] = reinterpret_cast<const float*>(&tile.totals[i / 4][lane])[i % 4];
#pragma unroll
        for (int distance = 4; distance < 32; distance *= 2) sum += __shfl_xor_sync(~0u, sum, distance);
    }
    if (lane < 4) {
        int channel = FourColumns::channel(Place(threadIdx.x));
        i64 to = block.part(p.scan) * p.scan.channels + block.first_channel + channel;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            if (channel + i >= block.channels) break;
            if (p.d_parts) p.d_parts[to + i] = totals[0][i];
            if (p.bias_parts) p.bias_parts[to + i] = totals[1][i];
        }
    }
}
