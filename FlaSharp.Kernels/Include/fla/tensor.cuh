// Where the tensors and the sequences of a call lie in global memory.
#pragma once
#include "fla/types.cuh"

namespace fla {

// A tensor [B, T, H, D] with dense rows [D]: strides in elements, of any sign.
struct TensorView {
    void* data;
    i64 batch, time, head;
};

// B sequences of T tokens each, one a batch row; or, where `offsets` [count + 1] is given, packed sequences in batch row 0.
struct Sequences {
    const int* offsets;
    int count;
    int length;  // T; with offsets, the longest sequence
    int reverse; // whether each runs from its last token to its first
};

// One sequence of one tensor and head: rows by the step in which the recurrence visits them.
template <class T> struct Rows {
    T* first;
    i64 stride;
    __device__ __forceinline__ T* operator[](int step) const { return first + step * stride; }
    // The same without the first ones.
    __device__ __forceinline__ Rows from(int step) const { return {first + step * stride, stride}; }
};

// One sequence of a call, the same for all its tensors.
struct Sequence {
    int index;  // which one: also the index of its states
    int length;
    i64 batch;  // the batch row
    i64 start;  // the token that the recurrence visits first
    int step;   // +1 or -1

    __device__ __forceinline__ Sequence(const Sequences& all, int sequence) : index(sequence) {
        int begin = all.offsets ? all.offsets[sequence] : 0;
        length = all.offsets ? all.offsets[sequence + 1] - begin : all.length;
        batch = all.offsets ? 0 : sequence;
        step = all.reverse ? -1 : 1;
        start = all.reverse ? begin + length - 1 : begin;
    }

    template <class T> __device__ __forceinline__ Rows<T> rows(const TensorView& view, int head) const {
        return {static_cast<T*>(view.data) + batch * view.batch + start * view.time + head * view.head, step * view.time};
    }
};

} // namespace fla
