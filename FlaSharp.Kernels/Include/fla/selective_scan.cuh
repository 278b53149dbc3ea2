// What the passes of the selective scan share. For each channel e with N states n, and decay rates A of any sign:
//     h_t[n] = exp(delta_t A[n]) h_{t-1}[n] + delta_t u_t B_t[n],     y_t = (sum over n of C_t[n] h_t[n] + D u_t) silu(z_t)
// with delta_t = softplus(raw delta_t + bias), or without the softplus. B and C belong to a group of channels.
//
// A block has CHANNELS neighbouring channels of a group, and SLICE states of each at a time. Its threads have two roles. In a
// scan, LANES neighbours share a channel, and each keeps STATES of its states in registers, in float32; B and C come from shared
// memory. With numbers of [T, E], a thread has VECTOR channels at some steps of a tile.
//
// Steps and channels beyond the end have delta = 0 and u = 0, which change no state; states beyond N have B = C = 0.
//
// Constants of a variant: ELEMENT of the tensors [B, T, ...] (float, bf16 or fp16), SOFTPLUS and GATED (0 or 1: whether there is
// a z), SINGLE of both passes (0 or 1: whether N is at most a slice), LANES (4 or 8), WARPS, STEPS of a tile, VECTOR (8: channels
// per group and states are multiples of it, and rows of all tensors, D and the bias are aligned to 16 bytes; or 1).
#pragma once
#include "fla/activation.cuh"
#include "fla/decay_rate.cuh"
#include "fla/lanes.cuh"
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"
#include "fla/vector.cuh"

namespace fla {

using Element = ELEMENT;

constexpr int SLICE = 16;
constexpr int STATES = SLICE / LANES;
constexpr int THREADS = 32 * WARPS;
constexpr int CHANNELS = THREADS / LANES;
constexpr int PACKS = CHANNELS / VECTOR;
static_assert(STEPS % (LANES * VECTOR) == 0, "threads share a tile evenly");

// A row of shared memory has the first channel of each pack, then the second ones: what threads with neighbouring packs access at
// once are neighbours.
__device__ __forceinline__ int channel_at(int position) { return position % PACKS * VECTOR + position / PACKS; }

// Rows of pairs of numbers such that a Column's threads, which access one position of each pack, do not meet in a bank.
constexpr int PAIR_ROW = CHANNELS + CHANNELS / 8;

// Rows of a number for each channel. In a scan, LANES steps of a warp's channels are accessed at once; by a Column, all packs of
// as many steps as a warp has. Neither meets in a bank.
struct Sums {
    static constexpr int ROW = CHANNELS + 32 / LANES;
    float rows[STEPS][ROW];

    __device__ __forceinline__ float& at(u32 step, int position) {
        return rows[step][position + step / LANES % 2 * (CHANNELS / 8)];
    }
    // From one of the first LANES steps to that of the i-th LANES.
    static __device__ __forceinline__ constexpr int distance(int i) { return i * LANES * ROW + i % 2 * (CHANNELS / 8); }
};

struct SelectiveScan {
    TensorView u, delta, z;   // [B, T, 1, E]
    TensorView b, c;          // [B, T, G, N]
    const float* a;           // [E, N]: A, or log(-A)
    const float* d;           // [E], or null
    const float* delta_bias;  // [E], or null
    Sequences sequences;
    int channels, group_channels, states;  // E, E / G, N
    int segments, segment_steps;           // parts of each sequence, for blocks of their own; steps in each but the last
    int groups;                            // G
    int is_log;                            // whether a is log(-A)
    int parts;                             // of a segment: a state of segment_state.cu for each
};

// What a block works on.
struct ScanBlock {
    Sequence sequence;
    int segment;
    int first, end;  // steps of the sequence
    int group, group_block;
    int first_channel, channels;

    __device__ __forceinline__ ScanBlock(const SelectiveScan& p, u32 block) : sequence(p.sequences, 0) {
        u32 group_blocks = (p.group_channels + CHANNELS - 1) / CHANNELS, blocks = p.groups * group_blocks;
        u32 part = block / blocks;
        block %= blocks;
        sequence = Sequence(p.sequences, part / p.segments);
        segment = part % p.segments;
        first = min(segment * p.segment_steps, sequence.length);
        end = segment + 1 < p.segments ? min(first + p.segment_steps, sequence.length) : sequence.length;
        group = block / group_blocks;
        group_block = block % group_blocks;
        first_channel = group * p.group_channels + group_block * CHANNELS;
        channels = min(CHANNELS, p.group_channels - group_block * CHANNELS);
    }
    // The first token, counted over all batch rows.
    __device__ __forceinline__ i64 first_token(const SelectiveScan& p) const {
        return p.sequences.offsets ? p.sequences.offsets[sequence.index] : (i64)sequence.index * p.sequences.length;
    }
    // A step's row of a tensor.
    __device__ __forceinline__ Element* row(const TensorView& view, int head, int step) const {
        i64 token = sequence.start + step;
        return static_cast<Element*>(view.data) + sequence.batch * view.batch + token * view.time + head * view.head;
    }
    // Of states [sequences, segments, E, N].
    __device__ __forceinline__ i64 part(const SelectiveScan& p) const { return (i64)sequence.index * p.segments + segment; }
};

using Pack = Vector<Element, VECTOR>;

// Packs of a tensor that a thread reads or writes, DISTANCE steps from one to the next, tile by tile.
template <int DISTANCE>
struct Strand {
    static constexpr int COUNT = DISTANCE < STEPS ? STEPS / DISTANCE : 1;  // in a tile

    Element* next;
    i64 stride;

    // The i-th of the tile, zeros if it does not exist.
    __device__ __forceinline__ void load(Pack& x, int i, bool exists, int first = 0) const {
        if (exists)
            x.load(next + first + i * stride);
        else
            x.clear();
    }
    // Those of the tile, `first` elements on: zeros where step i * DISTANCE is beyond `left` steps.
    __device__ __forceinline__ void load(Pack (&x)[COUNT], int left, int first = 0) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++) load(x[i], i, i * DISTANCE < left, first);
    }
    __device__ __forceinline__ void store(const Pack& x, int i) const { x.store(next + i * stride); }
    // To the tile `tiles` further.
    __device__ __forceinline__ void move(int tiles) { next += tiles * (STEPS / DISTANCE * stride); }
};

// A thread's part of tensors [T, CHANNELS].
struct Column {
    static constexpr int DISTANCE = THREADS / PACKS;
    using Inputs = Strand<DISTANCE>;
    static constexpr int COUNT = Inputs::COUNT;

    int channel, row;  // of the block, and of a tile: the first ones
    bool exists;

    __device__ __forceinline__ explicit Column(const ScanBlock& block)
        : channel(threadIdx.x % PACKS * VECTOR), row(threadIdx.x / PACKS), exists(channel < block.channels) {}

    // Where its v-th channels lie.
    __device__ __forceinline__ int position(int v) const { return threadIdx.x % PACKS + v * PACKS; }

    // Its numbers in a vector [E], 0 without one.
    __device__ __forceinline__ Vector<float, VECTOR> load(const float* vector, const ScanBlock& block) const {
        Vector<float, VECTOR> x;
        if (vector && exists)
            x.load(vector + block.first_channel + channel);
        else
            x.clear();
        return x;
    }
    // Of a tensor [B, T, 1, E], from a step on.
    __device__ __forceinline__ Inputs strand(const TensorView& view, const ScanBlock& block, int step) const {
        return {block.row(view, 0, step + row) + block.first_channel + channel, view.time * DISTANCE};
    }
    // Steps from the thread's first one in a tile to the end.
    __device__ __forceinline__ int left(int first, int end) const { return exists ? end - first - row : 0; }
};

// A thread's part of the matrices [T, SLICE] of B and C: half of the threads have B.
struct Cells {
    static constexpr int ROW = SLICE / VECTOR, DISTANCE = THREADS / 2 / ROW;
    using Inputs = Strand<DISTANCE>;
    static constexpr int COUNT = Inputs::COUNT;

    int matrix, row, state;  // 0 for B, 1 for C; of a tile and a slice: the first ones

    __device__ __forceinline__ Cells()
        : matrix(threadIdx.x / (THREADS / 2)), row(threadIdx.x % (THREADS / 2) / ROW), state(threadIdx.x % ROW * VECTOR) {}

    __device__ __forceinline__ Inputs strand(const SelectiveScan& p, const ScanBlock& block, int step) const {
        const TensorView& view = matrix == 0 ? p.b : p.c;
        return {block.row(view, block.group, step + row) + state, view.time * DISTANCE};
    }
    __device__ __forceinline__ int left(int first, int end, int slice, int states) const {
        return slice * SLICE + state < states ? end - first - row : 0;
    }
    __device__ __forceinline__ void store(float (&tiles)[2][STEPS][SLICE], const Pack (&x)[COUNT]) const {
#pragma unroll
        for (int i = 0; i < COUNT; i++)
            if (DISTANCE <= STEPS || row < STEPS) store_floats(&tiles[matrix][row + i * DISTANCE][state], x[i]);
    }

private:
    static __device__ __forceinline__ void store_floats(float* to, const Pack& x) {
        if constexpr (VECTOR == 1) {
            *to = x[0];
        } else {
#pragma unroll
            for (int v = 0; v < VECTOR; v += 4)
                *reinterpret_cast<float4*>(to + v) = make_float4(x[v], x[v + 1], x[v + 2], x[v + 3]);
        }
    }
};

// log(1 + x) for x in [0, 1], to 2e-7 of itself, or 8e-6 where tensors have no more digits. 1 + x would lose those of a small x.
__device__ __forceinline__ float log_of_one_plus(float x) {
    float y;
    if constexpr (sizeof(Element) == 2) {
        y = -0.023869152f;
        y = fmaf(y, x, 0.10122228f);
        y = fmaf(y, x, -0.21004869f);
        y = fmaf(y, x, 0.32520668f);
        y = fmaf(y, x, -0.49936136f);
        y = fmaf(y, x, 0.9999916f);
    } else {
        y = -0.008539183f;
        y = fmaf(y, x, 0.044089537f);
        y = fmaf(y, x, -0.10768157f);
        y = fmaf(y, x, 0.17745231f);
        y = fmaf(y, x, -0.24495459f);
        y = fmaf(y, x, 0.33275479f);
        y = fmaf(y, x, -0.49997404f);
        y = fmaf(y, x, 0.99999982f);
    }
    return x * y;
}

// delta, and its derivative by the raw one.
struct StepSize {
    static constexpr float NONE = SOFTPLUS ? -1e30f : 0.f;  // what gives 0

    float value, slope;

    __device__ __forceinline__ explicit StepSize(float raw) : value(raw), slope(1) {
        if constexpr (SOFTPLUS) {
            float e = pow2(-LOG2E * fabsf(raw));
            value = fmaxf(raw, 0.f) + log_of_one_plus(e);
            slope = (raw > 0 ? 1.f : e) * reciprocal(1.f + e);
        }
    }
};

// A thread's part of the block's states. NEIGHBOURS threads with the same states come first, then those that share a channel:
// all loads of a warp have pairs of threads, one or two apart, that read the same, and wide loads then need fewer accesses.
struct Lane {
    static constexpr int NEIGHBOURS = 2;
    int index;              // among those that share a channel
    int position, channel;  // in shared memory, and of the block
    int state;              // the first one of a slice

    __device__ __forceinline__ explicit Lane(u32 thread)
        : index(thread / NEIGHBOURS % LANES),
          position(thread / (NEIGHBOURS * LANES) * NEIGHBOURS + thread % NEIGHBOURS), channel(channel_at(position)),
          state(index * STATES) {}

    // Sums over those that share the channel.
    __device__ __forceinline__ float sum(float (&x)[LANES]) const { return sum_apart<NEIGHBOURS>(x, index); }
};

struct alignas(4 * STATES) States {
    float at[STATES];
};

__device__ __forceinline__ States load_states(const float* tile) { return *reinterpret_cast<const States*>(tile); }

// Where a thread's states lie in a tensor [..., E, N].
struct StatePlace {
    i64 offset;
    int count;

    __device__ __forceinline__ StatePlace(const SelectiveScan& p, const ScanBlock& block, const Lane& lane, i64 index,
                                          int slice) {
        int first = slice * SLICE + lane.state;
        offset = (index * p.channels + block.first_channel + lane.channel) * p.states + first;
        count = lane.channel < block.channels ? min(max(p.states - first, 0), STATES) : 0;
    }
    // Zeros without a tensor.
    __device__ __forceinline__ States load(const float* tensor) const {
        States x = {};
        if (tensor == nullptr) return x;
        const float* from = tensor + offset;
        if (whole(from)) return load_states(from);
#pragma unroll
        for (int i = 0; i < STATES; i++)
            if (i < count) x.at[i] = from[i];
        return x;
    }
    __device__ __forceinline__ void store(float* tensor, const States& x) const {
        float* to = tensor + offset;
        if (whole(to)) {
            *reinterpret_cast<States*>(to) = x;
            return;
        }
#pragma unroll
        for (int i = 0; i < STATES; i++)
            if (i < count) to[i] = x.at[i];
    }
    // exp(delta A) is a power of two of delta times this.
    __device__ __forceinline__ States load_decays(const SelectiveScan& p) const {
        States x = load(p.a);
#pragma unroll
        for (float& rate : x.at) rate = LOG2E * decay_rate(rate, p.is_log);
        return x;
    }

private:
    __device__ __forceinline__ bool whole(const float* p) const {
        return count == STATES && (reinterpret_cast<u64>(p) & (sizeof(States) - 1)) == 0;
    }
};

}  // namespace fla
