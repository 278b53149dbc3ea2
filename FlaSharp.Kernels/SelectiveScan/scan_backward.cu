// The gradients of the selective scan (see fla/selective_scan.cuh). Against time, with g_t the gradient of C h_t + D u_t,
//     dh_t[n] = exp(delta_{t+1} A[n]) dh_{t+1}[n] + C_t[n] g_t,     p_t[n] = dh_t[n] exp(delta_t A[n]) h_{t-1}[n]
//     d(delta u)_t = sum of B_t dh_t,    ddelta_t = sum of A p_t + u_t d(delta u)_t,    dA = sum over t of delta_t p_t
//     dB_t[n] = sum over channels of dh_t[n] delta_t u_t,    dC_t[n] = sum over channels of h_t[n] g_t
//
// Two warps have a group of 16 channels, rows of matrix instructions, each half of a slice's states. A tile's states come again
// from the one that the forward pass saved before it: first those before each PART of its steps, into shared memory; then, part
// by part from the end, all states and decays of a part into registers, where the walk back finds them.
//
// Sums over states or channels and the products delta u B and g C are matrix instructions for one or two steps. Their other
// operand has a part's eight steps, zeros for all others, so that the sums of a part fill the accumulators. Operands are
// bfloat16, or, where that is not enough, sums of two of them. Groups are added up here, blocks leave `b_parts` and `c_parts`.
//
// Constants: those of fla/selective_scan.cuh with LANES = 4 and STEPS as SAVED_STEPS of the forward pass, SHARED_BYTES, BLOCKS of
// a multiprocessor of Hopper.
#include "fla/scan_parts.cuh"
#include "fla/selective_scan.cuh"

using namespace fla;

constexpr int PART = 8;
constexpr int PARTS = STEPS / PART;
constexpr int ROWS = 16;          // channels of a group
constexpr int HALF = SLICE / 2;   // states of a warp
constexpr int GROUPS = WARPS / 2;
constexpr bool PRECISE = !same<Element, bf16>();
static_assert(CHANNELS == ROWS * GROUPS && HALF == 8 && PARTS % 2 == 0, "matrix instructions have 16 rows and 8 columns");

using Kept = ScanKept<Element>::Type;

struct SelectiveScanBackward {
    SelectiveScan scan;
    TensorView dy, du, ddelta, dz;  // [B, T, 1, E]
    const float* saved;             // [tokens / STEPS + S, E, N]: of the forward pass
    const float* final_gradient;    // [S, segments, parts, E, N]: that of the state after a segment, in the first part's place;
                                    // or null for zeros
    float* initial_gradient;        // [S, E, N], or null
    float* running;                 // [S, segments, E, N]: where gradients of states wait; needed where N is more than a slice
    float* a_parts;                 // [S, segments, E, N]
    float* d_parts;                 // [S, segments, E], or null
    float* bias_parts;              // [S, segments, E], or null
    Kept* b_parts;                  // [blocks of a group, tokens, G, N]
    Kept* c_parts;                  // [blocks of a group, tokens, G, N]
    i64 tokens;
};

// What a thread has: in a scan the channels 2 row and 2 row + 1 of its group, two states of each from 2 quad on in its half; of
// tensors [T, N] the same states at step `row` of a part; of tensors [T, channels] at that step four channels from 4 quad on.
struct Place {
    int group, half, row, quad;

    __device__ __forceinline__ explicit Place(u32 thread)
        : group(thread / 64), half(thread / 32 % 2), row(thread % 32 / 4), quad(thread % 4) {}

    __device__ __forceinline__ int state(int slice) const { return slice * SLICE + half * HALF + 2 * quad; }
};

// Where a thread's States, those of one channel and then of the other, lie in a tensor [..., E, N].
struct PairPlace {
    i64 offset;
    int channels, states, row;

    __device__ __forceinline__ PairPlace(const SelectiveScan& p, const ScanBlock& block, const Place& own, i64 index, int slice) {
        int channel = own.group * ROWS + 2 * own.row, state = own.state(slice);
        row = p.states;
        offset = (index * p.channels + block.first_channel + channel) * row + state;
        channels = block.channels - channel;
        states = row - state;
    }
    // Zeros without a tensor.
    __device__ __forceinline__ States load(const float* tensor) const {
        States x = {};
        if (tensor == nullptr) return x;
#pragma unroll
        for (int channel = 0; channel < 2; channel++) {
            if (channel >= channels) break;
            const float* from = tensor + offset + channel * row;
            if (states >= 2 && whole(from)) {
                float2 two = *reinterpret_cast<const float2*>(from);
                x.at[2 * channel] = two.x, x.at[2 * channel + 1] = two.y;
            } else {
                if (states > 0) x.at[2 * channel] = from[0];
                if (states > 1) x.at[2 * channel + 1] = from[1];
            }
        }
        return x;
    }
    __device__ __forceinline__ void store(float* tensor, const States& x) const {
#pragma unroll
        for (int channel = 0; channel < 2; channel++) {
            if (channel >= channels) break;
            float* to = tensor + offset + channel * row;
            if (states >= 2 && whole(to)) {
                *reinterpret_cast<float2*>(to) = make_float2(x.at[2 * channel], x.at[2 * channel + 1]);
            } else {
                if (states > 0) to[0] = x.at[2 * channel];
                if (states > 1) to[1] = x.at[2 * channel + 1];
            }
        }
    }

private:
    static __device__ __forceinline__ bool whole(const float* p) { return reinterpret_cast<u64>(p) % sizeof(float2) == 0; }
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

// Where a block's part of a tensor lies at the first step of a tile. Each warp keeps such places in shared memory and moves them
// from tile to tile: addresses made anew take longer, and there are no registers for them.
struct Cursor {
    char* at;
    i64 stride;  // from step to step, in bytes

    template <class T> __device__ __forceinline__ T* row(u32 step) const {
        return opaque_global(reinterpret_cast<T*>(at + step * stride));
    }
};

struct Cursors {
    // The first six are of the tile to be loaded, the others of the one that is worked on.
    enum { U, DELTA, DY, Z, B, C, U_AGAIN, DU, DDELTA, DZ, DC, DB, SAVED, COUNT };
    Cursor cursors[COUNT];

    __device__ __forceinline__ const Cursor& operator[](int i) const { return cursors[i]; }

    // By a whole warp, as all of these: to the last tile, or for the others behind it.
    __device__ __forceinline__ void begin(const SelectiveScanBackward& p, const ScanBlock& block, int last) {
        int i = threadIdx.x % 32, behind = last + STEPS;
        auto set = [&](const TensorView& view, int head, int channel, int step) {
            Element* row = block.row(view, head, step) + channel;
            cursors[i] = {reinterpret_cast<char*>(row), view.time * (i64)sizeof(Element)};
        };
        if (i < B)
            set(i == U ? p.scan.u : i == DELTA ? p.scan.delta : i == DY ? p.dy : p.scan.z, 0, block.first_channel, last);
        else if (i < U_AGAIN)
            set(i == B ? p.scan.b : p.scan.c, block.group, 0, last);
        else if (i < DC)
            set(i == U_AGAIN ? p.scan.u : i == DU ? p.du : i == DDELTA ? p.ddelta : p.dz, 0, block.first_channel, behind);
        else if (i < SAVED) {
            i64 token = (block.group_block * p.tokens + block.first_token(p.scan) + behind) * p.scan.groups + block.group;
            cursors[i] = {reinterpret_cast<char*>((i == DC ? p.c_parts : p.b_parts) + token * p.scan.states),
                          (i64)p.scan.groups * p.scan.states * (i64)sizeof(Kept)};
        } else if (i == SAVED) {  // its steps are tiles
            i64 slot = block.first_token(p.scan) / STEPS + block.sequence.index + behind / STEPS;
            i64 size = (i64)p.scan.channels * p.scan.states * (i64)sizeof(float);
            cursors[i] = {reinterpret_cast<char*>((u64)p.saved + slot * size), size};
        }
        __syncwarp();
    }
    // To the tile before.
    __device__ __forceinline__ void move() {
        int i = threadIdx.x % 32;
        __syncwarp();
        if (i < COUNT) cursors[i].at -= (i == SAVED ? 1 : STEPS) * cursors[i].stride;
        __syncwarp();
    }
};

// A thread's part of a tile of tensors [T, channels]: every second part of its steps.
struct Columns {
    static constexpr int COUNT = PARTS / 2;
    int step, first, channels, left;  // of the tile and the block: the first ones; steps to the end

    static __device__ __forceinline__ int channel(const Place& own) { return own.group * ROWS + 4 * own.quad; }

    __device__ __forceinline__ Columns(const Place& own, const ScanBlock& block, int tile)
        : step(own.half * PART + own.row), first(channel(own)), channels(block.channels - first),
          left(tile < block.first ? 0 : block.end - tile - step) {}

    __device__ __forceinline__ int count(int i) const { return i * 2 * PART < left ? min(channels, 4) : 0; }
    __device__ __forceinline__ void load(Four (&x)[COUNT], const Cursor& tensor) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) x[i].load(tensor.row<const Element>(step + i * 2 * PART) + first, count(i));
    }
    __device__ __forceinline__ void store(const Cursor& tensor, const float (&x)[COUNT][4]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) Four::store(tensor.row<Element>(step + i * 2 * PART) + first, count(i), x[i]);
    }
};

// Two neighbours as operands of a matrix instruction; SPLIT: with what the rounding left.
template <bool SPLIT> struct Operand {
    u32 high, low;

    __device__ __forceinline__ Operand() {}
    __device__ __forceinline__ Operand(float a, float b) : high(Pair<bf16>::pack(a, b)), low(0) {
        if constexpr (SPLIT) low = Pair<bf16>::pack(a - Pair<bf16>::low(high), b - Pair<bf16>::high(high));
    }
    __device__ __forceinline__ explicit Operand(u32 exact) : high(exact), low(0) {}
    __device__ __forceinline__ Operand transposed() const {
        Operand x(transpose_8x8(high));
        if constexpr (SPLIT) x.low = transpose_8x8(low);
        return x;
    }
    __device__ __forceinline__ Operand kept(bool condition) const {
        Operand x(condition ? high : 0);
        if constexpr (SPLIT) x.low = condition ? low : 0;
        return x;
    }
};
using Factor = Operand<PRECISE>;

__device__ __forceinline__ void multiply(float (&d)[4], const Factor& a0, const Factor& a1, const Factor& a2, const Factor& a3,
                                         const Factor& b0, const Factor& b1) {
    u32 high[4] = {a0.high, a1.high, a2.high, a3.high};
    mma_m16n8k16<bf16>(d, high, b0.high, b1.high);
    if constexpr (PRECISE) {
        u32 low[4] = {a0.low, a1.low, a2.low, a3.low};
        mma_m16n8k16<bf16>(d, high, b0.low, b1.low);
        mma_m16n8k16<bf16>(d, low, b0.high, b1.high);
    }
}

// Of B and C, for the steps of a part.
struct Matrix {
    Element at[PART][SLICE];

    // Two states of a step.
    __device__ __forceinline__ Pair<Element>::Type pair(int step, const Place& place) const {
        return reinterpret_cast<const Pair<Element>::Type*>(at[step])[place.half * (HALF / 2) + place.quad];
    }
    // Of step `row`, as an operand.
    template <bool SPLIT = PRECISE> __device__ __forceinline__ Operand<SPLIT> operand(const Place& place) const {
        auto two = pair(place.row, place);
        if constexpr (SPLIT)
            return {Pair<Element>::low(two), Pair<Element>::high(two)};
        else
            return Operand<SPLIT>(two);
    }
};

// A number for each step of a part and channel of a group; a thread's own four are of step `row`.
struct Numbers {
    float4 at[32];

    __device__ __forceinline__ float4& own() { return at[threadIdx.x % 32]; }
    // Those of two channels each, as operands.
    __device__ __forceinline__ Factor operand(int i) {
        float4 x = own();
        return i == 0 ? Factor(x.x, x.z) : Factor(x.y, x.w);
    }
    __device__ __forceinline__ float2 channels(int step, const Place& place) const {
        return reinterpret_cast<const float2*>(at)[step * (ROWS / 2) + place.row];
    }
};

// The same of sums over a warp's states, as matrix instructions leave them: both channels at steps 2 quad and 2 quad + 1. The
// exchanged columns keep these from meeting in a bank.
struct StateSums {
    float2 at[PART][ROWS / 2];

    __device__ __forceinline__ float4 own(const Place& place) const {
        return *reinterpret_cast<const float4*>(at[place.row] + (2 * place.quad ^ (place.row & 4)));
    }
    __device__ __forceinline__ void load(float (&x)[4], const Place& place) {
#pragma unroll
        for (int i = 0; i < 2; i++) x[i] = pair(place, i).x, x[2 + i] = pair(place, i).y;
    }
    __device__ __forceinline__ void store(const float (&x)[4], const Place& place) {
#pragma unroll
        for (int i = 0; i < 2; i++) pair(place, i) = make_float2(x[i], x[2 + i]);
    }

private:
    __device__ __forceinline__ float2& pair(const Place& place, int i) {
        return at[2 * place.quad + i][place.row ^ (2 * place.quad & 4)];
    }
};

// Numbers of a part's steps and a group's channels, as factors of products with others of states, and of sums over channels.
template <bool> struct FactorOf {
    u32 at[2][2];  // of even and of odd steps: both channels, as sums of two

    __device__ __forceinline__ explicit FactorOf(float4 x) {
        Operand<true> parts[2] = {{x.x, x.z}, {x.y, x.w}};
#pragma unroll
        for (int i = 0; i < 2; i++) {
            Operand<true> part = parts[i].transposed();
            at[0][i] = __byte_perm(part.high, part.low, 0x5410);
            at[1][i] = __byte_perm(part.high, part.low, 0x7632);
        }
    }
    __device__ __forceinline__ FactorOf(Numbers& x) : FactorOf(x.own()) {}

    // The same from where it was stored.
    static __device__ __forceinline__ FactorOf load(Numbers& from) {
        FactorOf x;
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
    // As Numbers do.
    __device__ __forceinline__ Factor operand(int i) const {
        return Factor(__byte_perm(at[0][i], at[1][i], 0x5410)).transposed();
    }

private:
    __device__ __forceinline__ FactorOf() {}
};
template <> struct FactorOf<true> {
    Numbers& numbers;

    __device__ __forceinline__ FactorOf(Numbers& x) : numbers(x) {}
    static __device__ __forceinline__ FactorOf load(Numbers& from) { return from; }
    static __device__ __forceinline__ void store(Numbers& to, float4 x) { to.own() = x; }
    __device__ __forceinline__ Factor operand(int i) const { return numbers.operand(i); }
};
using ChannelFactor = FactorOf<PRECISE>;

// Products of a number of each channel and one of each state, for the steps of a part. With bfloat16 for the states, an
// instruction makes them of both halves of the first factor, for four steps, of which the second one has only one.
template <bool> struct ProductsOf {
    FactorOf<false> channels;
    u32 states[2];  // of even and of odd steps

    __device__ __forceinline__ ProductsOf(const FactorOf<false>& channels, const Matrix& factor, const Place& place)
        : channels(channels) {
        u32 pair = transpose_8x8(factor.operand<false>(place).high);
        states[0] = __byte_perm(pair, pair, 0x1010);
        states[1] = __byte_perm(pair, pair, 0x3232);
    }
    __device__ __forceinline__ void add(States& x, int step, const Place& place) const {
        mma_m16n8k8<bf16>(x.at, channels.at[step % 2], place.quad == step / 2 ? states[step % 2] : 0);
    }
};
template <> struct ProductsOf<true> {
    FactorOf<true> channels;
    const Matrix& states;

    __device__ __forceinline__ ProductsOf(const FactorOf<true>& channels, const Matrix& factor, const Place&)
        : channels(channels), states(factor) {}
    __device__ __forceinline__ void add(States& x, int step, const Place& place) const {
        float2 a = channels.numbers.channels(step, place);
        auto pair = states.pair(step, place);
        float b[2] = {Pair<Element>::low(pair), Pair<Element>::high(pair)};
#pragma unroll
        for (int n = 0; n < 4; n++) x.at[n] = fmaf(n < 2 ? a.x : a.y, b[n % 2], x.at[n]);
    }
};
using Products = ProductsOf<PRECISE>;

using Stored = Vector<Kept, 4>;

// What two warps have of a part.
struct GroupPart {
    Numbers delta, input, g;           // input: delta u
    StateSums y[2], du[2], ddelta[2];  // of C h, of B dh, of A p / ln(2)
    float sums[PART][2][SLICE];        // over channels: of dC, of dB
    Stored slope[32], gate[32];        // of delta by the raw one, of y by z; each thread's own
};

struct Shared {
    GroupPart groups[GROUPS][PARTS];
    States starts[PARTS - 2][THREADS];  // states before all parts but the first and the last; each thread's own
    Matrix matrices[2][PARTS];          // B, C
    Cursors cursors[WARPS];
    float totals[THREADS];              // of row n over a warp's steps: of g u for the channels, n < 4, then of ddelta
    ScanBlock block;
};
static_assert(sizeof(Shared) == SHARED_BYTES, "the launcher computes the same");

struct Inputs {
    Four u[Columns::COUNT], delta[Columns::COUNT], dy[Columns::COUNT], z[Columns::COUNT];
    Pack matrix[Cells::COUNT];
};

// States of both channels as the first operand of products over them.
struct StatePair {
    Factor of[2];

    __device__ __forceinline__ StatePair() {}
    __device__ __forceinline__ explicit StatePair(const States& x) : of{{x.at[0], x.at[1]}, {x.at[2], x.at[3]}} {}
    // A number of each channel in two states' place: what they add up to is the number to its last bit.
    __device__ __forceinline__ StatePair(float x, float y) : of{{x, rest(x)}, {y, rest(y)}} {}

private:
    static __device__ __forceinline__ float rest(float x) {
        Operand<true> parts(x, 0.f);
        return x - Pair<bf16>::low(parts.high) - Pair<bf16>::low(parts.low);
    }
};

// Sums over states are products of the states and an operand of weights. Where bfloat16 is not enough, a thread sums up its own
// states in float32, and the product is one with ones.
__device__ __forceinline__ Factor ones() { return Factor(0x3f803f80); }
__device__ __forceinline__ Factor weights_of(const Matrix& weights, const Place& place) {
    if constexpr (PRECISE)
        return ones();
    else
        return weights.operand(place);
}
__device__ __forceinline__ StatePair weighted(const States& x, const StatePair& pair, const Matrix& weights, int step,
                                              const Place& place) {
    if constexpr (PRECISE) {
        auto two = weights.pair(step, place);
        float first = Pair<Element>::low(two), second = Pair<Element>::high(two);
        return {fmaf(x.at[1], second, x.at[0] * first), fmaf(x.at[3], second, x.at[2] * first)};
    } else {
        return pair;
    }
}

// Adds sums over states, of the steps i and i + 1, to those of a part, with a factor of states that is that of step `row`.
__device__ __forceinline__ void add_states(float (&d)[4], int i, const StatePair& even, const StatePair& odd, const Factor& x,
                                           const Place& place) {
    multiply(d, even.of[0], even.of[1], odd.of[0], odd.of[1], x.kept(place.row == i), x.kept(place.row == i + 1));
}

// The same of what each thread has summed up of its own states, for both channels.
__device__ __forceinline__ void add_sums(float (&d)[4], int i, float2 even, float2 odd, const Place& place) {
    if constexpr (PRECISE) {
        add_states(d, i, {even.x, even.y}, {odd.x, odd.y}, ones(), place);
    } else {  // the steps take the place of states
        u32 pairs[2] = {Pair<bf16>::pack(even.x, odd.x), Pair<bf16>::pack(even.y, odd.y)};
        u32 one = place.row % 2 ? 0x3f800000 : 0x3f80;
        mma_m16n8k8<bf16>(d, pairs, (place.row & ~1) == i ? one : 0);
    }
}

// Sums over a group's channels for a part's steps.
struct ChannelSums {
    float d[4] = {};  // state `row`: the first and the last are of steps 2 quad and 2 quad + 1

    // Those of the steps i and i + 1, with factors of channels that are those of step `row`.
    __device__ __forceinline__ void add(int i, const StatePair& even, const StatePair& odd, const Factor (&x)[2],
                                        const Place& place) {
        bool own = (place.row & ~1) == i;
        multiply(d, even.of[0].transposed(), odd.of[0].transposed(), even.of[1].transposed(), odd.of[1].transposed(),
                 x[0].kept(own), x[1].kept(own));
    }
    __device__ __forceinline__ void store(float (*sums)[2][SLICE], int matrix, const Place& place) const {
        int state = place.half * HALF + place.row;
        sums[2 * place.quad][matrix][state] = d[0], sums[2 * place.quad + 1][matrix][state] = d[3];
    }
};

// One step of the scan; the decays of its states.
__device__ __forceinline__ States advance(States& h, const States& rates, float2 delta, const Products& inputs, int step,
                                          const Place& place) {
    States decays, input = {};
    inputs.add(input, step, place);
#pragma unroll
    for (int n = 0; n < 4; n++) {
        decays.at[n] = pow2((n < 2 ? delta.x : delta.y) * rates.at[n]);
        h.at[n] = fmaf(decays.at[n], h.at[n], input.at[n]);
    }
    return decays;
}

// A part's states again, with y and dC, and the walk back: dh is the gradient of the state after the part, then of that before
// it. Sums over states join those of other slices if `add`.
__device__ __forceinline__ void walk_part(GroupPart& part, const Matrix& b, const Matrix& c, bool add, const States& rates,
                                          const States& start, States& dh, States& da) {
    Place place(threadIdx.x);
    States h = start, states[PART], decays[PART];
    {
        Products inputs(ChannelFactor::load(part.input), b, place);
        Factor rows[2] = {part.g.operand(0), part.g.operand(1)}, factor = weights_of(c, place);
        ChannelSums dc;
        float y[4] = {};
        if (GATED && add) part.y[place.half].load(y, place);
#pragma unroll
        for (int i = 0; i < PART; i += 2) {
            StatePair pair[2], summands[2];
#pragma unroll
            for (int j = 0; j < 2; j++) {
                decays[i + j] = advance(h, rates, part.delta.channels(i + j, place), inputs, i + j, place);
                states[i + j] = h;
                pair[j] = StatePair(h);
                summands[j] = weighted(h, pair[j], c, i + j, place);
            }
            if (GATED) add_states(y, i, summands[0], summands[1], factor, place);
            dc.add(i, pair[0], pair[1], rows, place);
        }
        if (GATED) part.y[place.half].store(y, place);
        dc.store(part.sums, 0, place);
    }

    __syncwarp();  // the walk back is not to begin before: its operands would take registers
    place.row = opaque(place.row), place.quad = opaque(place.quad);  // conditions come again, without a register in between
    ChannelFactor input = ChannelFactor::load(part.input);
    Products gradients(part.g, c, place);
    Factor rows[2] = {input.operand(0), input.operand(1)}, factor = weights_of(b, place);
    ChannelSums db;
    float du[4] = {}, ddelta[4] = {};
    if (add) part.du[place.half].load(du, place), part.ddelta[place.half].load(ddelta, place);
#pragma unroll
    for (int i = PART - 2; i >= 0; i -= 2) {
        StatePair pair[2], summands[2];
        float2 exponents[2];
#pragma unroll
        for (int j = 1; j >= 0; j--) {
            float2 delta = part.delta.channels(i + j, place);
            const States& before = i + j > 0 ? states[i + j - 1] : start;
            gradients.add(dh, i + j, place);
            pair[j] = StatePair(dh);
            summands[j] = weighted(dh, pair[j], b, i + j, place);
            float p[4];
#pragma unroll
            for (int n = 0; n < 4; n++) {
                dh.at[n] *= decays[i + j].at[n];
                p[n] = dh.at[n] * before.at[n];
                da.at[n] = fmaf(p[n], n < 2 ? delta.x : delta.y, da.at[n]);
            }
            exponents[j] = make_float2(fmaf(p[1], rates.at[1], p[0] * rates.at[0]), fmaf(p[3], rates.at[3], p[2] * rates.at[2]));
        }
        add_states(du, i, summands[0], summands[1], factor, place);
        add_sums(ddelta, i, exponents[0], exponents[1], place);
        db.add(i, pair[0], pair[1], rows, place);
    }
    part.du[place.half].store(du, place), part.ddelta[place.half].store(ddelta, place);
    db.store(part.sums, 1, place);
}

#if __CUDA_ARCH__ >= 900
constexpr int RESIDENT = BLOCKS;
#else
constexpr int RESIDENT = 2;  // more have no room in shared memory
#endif

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT)
    selective_scan_backward(const __grid_constant__ SelectiveScanBackward p) {
    follow_stream();
    Shared& shared = shared_memory_as<Shared>();
    ScanBlock& block = shared.block;  // read where it is needed, as Places are made there: the walk needs the registers
    if (threadIdx.x == 0) block = ScanBlock(p.scan, blockIdx.x);
    __syncthreads();
    auto place_here = [] { return Place(opaque(threadIdx.x)); };
    auto states_at = [&](int slice, i64 index) { return PairPlace(p.scan, block, place_here(), index, slice); };
    auto cursors_here = [&]() -> Cursors& { return shared.cursors[opaque(threadIdx.x) / 32]; };
    auto load_saved = [&](int slice) {
        return states_at(slice, 0).load(cursors_here()[Cursors::SAVED].row<const float>(0));
    };
    auto load_channels = [&](const float* x, float (&values)[4]) {
        int channel = Columns::channel(place_here()), left = x ? block.channels - channel : 0;
        x += block.first_channel + channel;
        Vector<float, 4> four;
        if (VECTOR > 1 && left > 0)
            four.load(x);
        else
            four.clear();
#pragma unroll
        for (int i = 0; i < 4; i++) values[i] = VECTOR == 1 && i < left ? x[i] : four[i];
    };
    Inputs inputs;
    auto load_inputs = [&](int first) {
        Columns columns(place_here(), block, first);
        const Cursors& cursors = cursors_here();
        columns.load(inputs.u, cursors[Cursors::U]), columns.load(inputs.delta, cursors[Cursors::DELTA]);
        columns.load(inputs.dy, cursors[Cursors::DY]);
        if (GATED) columns.load(inputs.z, cursors[Cursors::Z]);
    };
    // Of the tile to be loaded, or of the one that comes `later` after it.
    auto load_matrices = [&](int first, int slice, int later) {
        Cells cells;
        int left = first < block.first ? 0 : cells.left(first, block.end, slice, p.scan.states);
        const Cursor& cursor = cursors_here()[Cursors::B + cells.matrix];
        i64 distance = cursor.stride / (i64)sizeof(Element) * Cells::DISTANCE;
        Cells::Inputs{cursor.row<Element>(later + cells.row) + cells.state, distance}.load(inputs.matrix, left, slice * SLICE);
    };
    auto store_matrices = [&] {
        Cells cells;
#pragma unroll
        for (int i = 0; i < Cells::COUNT; i++) {
            int row = cells.row + i * Cells::DISTANCE;
            inputs.matrix[i].store(shared.matrices[cells.matrix][row / PART].at[row % PART] + cells.state);
        }
    };

    auto& tile = shared.groups[threadIdx.x / 64];
    int slices = SINGLE ? 1 : (p.scan.states + SLICE - 1) / SLICE;
    int tiles = (block.end - block.first + STEPS - 1) / STEPS, last = block.first + (tiles - 1) * STEPS;
    cursors_here().begin(p, block, last);
    load_inputs(last), load_matrices(last, 0, 0);
    cursors_here().move();

    shared.totals[threadIdx.x] = 0;
    States dh = {}, da = {}, rates = {};
    if (tiles == 0) {
        for (int slice = 0; slice < slices; slice++) {
            if (block.segment == 0 && p.initial_gradient)
                states_at(slice, block.sequence.index)
                    .store(p.initial_gradient, states_at(slice, block.part(p.scan) * p.scan.parts).load(p.final_gradient));
            states_at(slice, block.part(p.scan)).store(p.a_parts, da);
        }
    }
#pragma unroll 1
    for (int n = tiles - 1; n >= 0; n--) {
        auto first = [&] { return block.first + n * STEPS; };
        auto steps = [&] { return min(STEPS, block.end - first()); };
        auto parts = [&] { return (steps() + PART - 1) / PART; };
        bool is_last = n + 1 == tiles;
        States h = load_saved(0);
        {
            Columns columns(place_here(), block, first());
            int half = threadIdx.x / 32 % 2, lane = threadIdx.x % 32;
            float bias[4];
            load_channels(p.scan.delta_bias, bias);
#pragma unroll
            for (int k = 0; k < Columns::COUNT; k++) {
                int part = 2 * k + half, present = columns.count(k);
                float sizes[4], slopes[4], products[4], gradients[4], gates[4];
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    StepSize size(i < present ? inputs.delta[k].x[i] + bias[i] : StepSize::NONE);
                    sizes[i] = size.value, slopes[i] = size.slope;
                    products[i] = size.value * inputs.u[k].x[i];
                    gradients[i] = inputs.dy[k].x[i];
                    if constexpr (GATED) {
                        float g = gradients[i], gate = inputs.z[k].x[i], s = sigmoid(gate);
                        gradients[i] = g * (gate * s);
                        gates[i] = g * s * fmaf(gate, 1 - s, 1.f);
                    }
                }
                auto four = [](const float (&x)[4]) { return make_float4(x[0], x[1], x[2], x[3]); };
                tile[part].delta.own() = four(sizes), tile[part].g.own() = four(gradients);
                ChannelFactor::store(tile[part].input, four(products));
                tile[part].slope[lane].set(slopes);
                if (GATED) tile[part].gate[lane].set(gates);
            }
        }
        Four u[Columns::COUNT];
#pragma unroll 1
        for (int slice = 0; slice < slices; slice++) {
            if (slices > 1 || is_last) {
                dh = states_at(slice, block.part(p.scan) * (is_last ? p.scan.parts : 1))
                         .load(is_last ? p.final_gradient : p.running);
                da = is_last ? States{} : states_at(slice, block.part(p.scan)).load(p.a_parts);
                rates = states_at(slice, 0).load(p.scan.a);
#pragma unroll
                for (float& rate : rates.at) rate = LOG2E * decay_rate(rate, p.scan.is_log);
            }
            if (slice > 0) h = load_saved(slice);
            store_matrices();
            __syncthreads();
            States start = h;
#pragma unroll 1
            for (int part = 0; part + 1 < parts(); part++) {
                Place place(threadIdx.x);
                if (part > 0) shared.starts[part - 1][threadIdx.x] = h;
                Products products(ChannelFactor::load(tile[part].input), shared.matrices[0][part], place);
#pragma unroll
                for (int i = 0; i < PART; i++) advance(h, rates, tile[part].delta.channels(i, place), products, i, place);
            }
#pragma unroll 1
            for (int part = parts() - 1; part >= 0; part--) {
                walk_part(tile[part], shared.matrices[0][part], shared.matrices[1][part], slice > 0, rates, h, dh, da);
                h = part > 1 ? shared.starts[part - 2][threadIdx.x] : start;
            }

            if (slices > 1 || n == 0) {
                if (n == 0 && block.segment == 0) {
                    if (p.initial_gradient) states_at(slice, block.sequence.index).store(p.initial_gradient, dh);
                } else if (slices > 1) {
                    states_at(slice, block.part(p.scan)).store(p.running, dh);
                }
                states_at(slice, block.part(p.scan)).store(p.a_parts, da);
            }
            Columns(place_here(), block, first()).load(u, cursors_here()[Cursors::U_AGAIN]);
            if (slice + 1 < slices)
                load_matrices(first(), slice + 1, STEPS);
            else
                load_matrices(first() - STEPS, 0, 0);
            __syncthreads();

            // Four states of dC or dB for each thread at a time.
            int thread = opaque(threadIdx.x);
            constexpr int FOURS = 2 * SLICE / 4;  // of a step
            int step = thread / FOURS, matrix = thread / (FOURS / 2) % 2, state = thread % (FOURS / 2) * 4;
            int present = p.scan.states - slice * SLICE - state;
            const Cursor& cursor = cursors_here()[Cursors::DC + matrix];
#pragma unroll
            for (int i = 0; i < STEPS; i += THREADS / FOURS) {
                int row = i + step;
                if (row >= steps()) break;
                Kept* to = cursor.row<Kept>(row) + slice * SLICE + state;
                auto of_group = [&](int group) {
                    return *reinterpret_cast<const float4*>(shared.groups[group][row / PART].sums[row % PART][matrix] + state);
                };
                float4 x = of_group(0);
                float sum[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
                for (int group = 1; group < GROUPS; group++) {
                    float4 more = of_group(group);
                    sum[0] += more.x, sum[1] += more.y, sum[2] += more.z, sum[3] += more.w;
                }
                if (p.scan.states % 4 == 0) {
                    Stored four;
                    four.set(sum);
                    if (present > 0) four.store(to);
                } else {
#pragma unroll
                    for (int n = 0; n < 4; n++)
                        if (n < present) to[n] = from_float<Kept>(sum[n]);
                }
            }
        }

        load_inputs(first() - STEPS);  // zeros before the first tile
        Place place = place_here();
        Columns columns(place, block, first());
        float skip[4], totals[8] = {}, du[Columns::COUNT][4], ddelta[Columns::COUNT][4], dz[Columns::COUNT][4];
        load_channels(p.scan.d, skip);
#pragma unroll
        for (int k = 0; k < Columns::COUNT; k++) {
            int part = 2 * k + place.half, lane = threadIdx.x % 32, present = columns.count(k);
            auto at = [](const float4& x, int i) { return i == 0 ? x.x : i == 1 ? x.y : i == 2 ? x.z : x.w; };
            auto both = [&](const StateSums (&x)[2]) {
                float4 a = x[0].own(place), b = x[1].own(place);
                return make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
            };
            float4 delta = tile[part].delta.own(), g = tile[part].g.own();
            float4 y = both(tile[part].y), input = both(tile[part].du), exponents = both(tile[part].ddelta);
            const Stored &slope = tile[part].slope[lane], &gate = tile[part].gate[lane];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                float x = u[k].x[i];
                du[k][i] = fmaf(at(input, i), at(delta, i), skip[i] * at(g, i));
                ddelta[k][i] = fmaf(at(input, i), x, LN2 * at(exponents, i)) * slope[i];
                if (GATED) dz[k][i] = fmaf(skip[i], x, at(y, i)) * gate[i];
                totals[i] = fmaf(at(g, i), x, totals[i]);
                totals[4 + i] += (VECTOR == 1 ? i : 0) < present ? ddelta[k][i] : 0.f;
            }
        }
        Cursors& cursors = cursors_here();
        columns.store(cursors[Cursors::DU], du), columns.store(cursors[Cursors::DDELTA], ddelta);
        if (GATED) columns.store(cursors[Cursors::DZ], dz);
        cursors.move();
        shared.totals[threadIdx.x] += sum_apart<4>(totals, place.row);
    }

    // The other warp's joins it.
    __syncthreads();
    Place place(threadIdx.x);
    int channel = Columns::channel(place) + place.row % 4;
    float* to = place.row < 4 ? p.d_parts : p.bias_parts;
    if (place.half == 0 && channel < block.channels && to)
        to[block.part(p.scan) * p.scan.channels + block.first_channel + channel] =
            shared.totals[threadIdx.x] + shared.totals[threadIdx.x + 32];
}
