// What both passes of the causal convolution share. For each channel, with PAST = WIDTH - 1,
//     s[t] = bias + sum over w of weight[w] x[t - PAST + w],  y[t] = s[t] or, if SILU, s[t] sigmoid(s[t]).
// A thread takes VECTOR neighbouring channels and marches over a run of tokens; a warp's lanes lie side by side.
//
// Constants: ELEMENT of x and y (float, bf16 or fp16); WIDTH; VECTOR; STEPS tokens that are asked for at once; WARPS of a block;
// SILU 0 or 1.
#pragma once
#include "fla/activation.cuh"
#include "fla/ptx.cuh"
#include "fla/tensor.cuh"
#include "fla/vector.cuh"

namespace fla {

constexpr int PAST = WIDTH - 1;
constexpr int GROUP = 32 * VECTOR; // channels of a warp
constexpr int THREADS = 32 * WARPS;

using Element = ELEMENT;
using Chunk = Vector<Element, VECTOR>;

// A slot is a place for a run: sequence s has the slots from begin / run + s on if the sequences are packed, `pieces` of its own
// if not. So each has one at least, even if it is empty, and no two share one.
struct ConvShape {
    Sequences sequences;
    int channels;
    int run;    // tokens
    int pieces; // slots of a sequence where they are not packed
    int slots;  // of all
};

__device__ __forceinline__ int sequence_of_slot(const ConvShape& shape, int slot) {
    if (!shape.sequences.offsets) return slot / shape.pieces;
    int low = 0, high = shape.sequences.count; // the answer is in [low, high)
    while (high - low > 1) {
        int middle = (low + high) / 2;
        (shape.sequences.offsets[middle] / shape.run + middle <= slot ? low : high) = middle;
    }
    return low;
}

// Where a thread works: at its channels, the tokens [first, end) of a sequence.
struct ConvPlace {
    int group, row; // of the block
    int slot;
    Sequence sequence;
    int channel, first, end;
    bool exists; // whether there are such channels and such a run, which is empty in an empty sequence

    __device__ __forceinline__ explicit ConvPlace(const ConvShape& shape)
        : group(blockIdx.x % groups(shape)), row(blockIdx.x / groups(shape)), slot(row * WARPS + threadIdx.x / 32),
          sequence(shape.sequences, sequence_of_slot(shape, min(slot, shape.slots - 1))),
          channel(group * GROUP + threadIdx.x % 32 * VECTOR) {
        int before = shape.sequences.offsets ? shape.sequences.offsets[sequence.index] / shape.run + sequence.index
                                             : sequence.index * shape.pieces;
        first = (slot - before) * shape.run;
        end = min(first + shape.run, sequence.length);
        exists = slot < shape.slots && channel < shape.channels && (first == 0 || first < sequence.length);
    }

    __device__ __forceinline__ static int groups(const ConvShape& shape) { return (shape.channels + GROUP - 1) / GROUP; }
    __device__ __forceinline__ bool is_last() const { return end == sequence.length; }

    template <class T> __device__ __forceinline__ Rows<T> rows(const TensorView& view) const {
        Rows<T> rows = sequence.rows<T>(view, 0);
        return {rows.first + channel, rows.stride};
    }
    // Of states [S, channels, PAST].
    template <class T> __device__ __forceinline__ T* state(T* states, const ConvShape& shape) const {
        return states ? states + ((i64)sequence.index * shape.channels + channel) * PAST : nullptr;
    }
};

// Weights [channels, WIDTH] and biases [channels]: each of ELEMENT or float32.
struct ConvParameters {
    const void* weight;
    const void* bias; // or null
    int float_weight, float_bias;
};

struct Taps {
    float weights[WIDTH][VECTOR];
    float bias[VECTOR];

    __device__ __forceinline__ Taps(const ConvParameters& parameters, int channel) {
        if (parameters.float_weight)
            read_weights(static_cast<const float*>(parameters.weight) + (i64)channel * WIDTH);
        else
            read_weights(static_cast<const Element*>(parameters.weight) + (i64)channel * WIDTH);
#pragma unroll
        for (float& value : bias) value = 0;
        if (parameters.bias && parameters.float_bias)
            read_bias(static_cast<const float*>(parameters.bias) + channel);
        else if (parameters.bias)
            read_bias(static_cast<const Element*>(parameters.bias) + channel);
    }

private:
    template <class W> __device__ __forceinline__ void read_weights(const W* from) {
        if constexpr (VECTOR == 1) {
#pragma unroll
            for (int w = 0; w < WIDTH; w++) weights[w][0] = to_float(from[w]);
        } else {
            Vector<W, VECTOR * WIDTH> vector;
            vector.load(from);
#pragma unroll
            for (int i = 0; i < VECTOR; i++)
#pragma unroll
                for (int w = 0; w < WIDTH; w++) weights[w][i] = vector[i * WIDTH + w];
        }
    }
    template <class W> __device__ __forceinline__ void read_bias(const W* from) {
        Vector<W, VECTOR> vector;
        vector.load(from);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) bias[i] = vector[i];
    }
};

// The PAST vectors before the current one, the oldest first.
struct Window {
    float values[PAST ? PAST : 1][VECTOR];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (auto& vector : values)
#pragma unroll
            for (float& value : vector) value = 0;
    }
    __device__ __forceinline__ void push(const float (&next)[VECTOR]) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
#pragma unroll
            for (int j = 0; j + 1 < PAST; j++) values[j][i] = values[j + 1][i];
            if (PAST) values[PAST ? PAST - 1 : 0][i] = next[i];
        }
    }
};

// What a sequence's convolution sees: its tokens, and before them, at negative steps, the initial state or zeros.
struct Inputs {
    Rows<const Element> tokens;
    const float* state; // [VECTOR, PAST], or null

    __device__ __forceinline__ void load(float (&values)[VECTOR], int step) const {
        if (step >= 0) {
            Chunk chunk;
            chunk.load(tokens[step]);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) values[i] = chunk[i];
        } else {
#pragma unroll
            for (int i = 0; i < VECTOR; i++) values[i] = state ? state[i * PAST + PAST + step] : 0;
        }
    }
    // The PAST inputs before a step.
    __device__ __forceinline__ void load(Window& window, int step) const {
        if (step >= PAST) { // tokens alone: all are asked for before the first is used
            Chunk chunks[PAST ? PAST : 1];
#pragma unroll
            for (int j = 0; j < PAST; j++) chunks[j].load(tokens[step - PAST + j]);
#pragma unroll
            for (int j = 0; j < PAST; j++)
#pragma unroll
                for (int i = 0; i < VECTOR; i++) window.values[j][i] = chunks[j][i];
        } else {
#pragma unroll
            for (int j = 0; j < PAST; j++) load(window.values[j], step - PAST + j);
        }
    }
};

__device__ __forceinline__ void convolve(float (&sums)[VECTOR], const Taps& taps, const Window& past,
                                         const float (&current)[VECTOR]) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) {
        sums[i] = taps.bias[i];
#pragma unroll
        for (int j = 0; j < PAST; j++) sums[i] += taps.weights[j][i] * past.values[j][i];
        sums[i] += taps.weights[PAST][i] * current[i];
    }
}

} // namespace fla
