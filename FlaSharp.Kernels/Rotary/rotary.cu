// Turns the heads of x by their tokens' positions: fla/rotary.cuh. A block takes some tokens with all their heads.
#include "fla/rotary.cuh"

using namespace fla;

constexpr int THREADS = 256, TABLE = 2048;

struct RotaryTurn {
    TensorView x, y;           // [B, T, heads, size]
    const void* positions;     // int32 or int64, or null: token t is at offset + t
    i64 batch_step, time_step; // of positions
    i64 offset;
    int is_long, tokens, time, heads, size;
    int block; // tokens of a block; their pairs are at most TABLE
    Rotary rotary;

    __device__ __forceinline__ i64 position(int batch, int t) const {
        i64 at = batch * batch_step + t * time_step;
        if (!positions) return offset + t;
        return is_long ? static_cast<const i64*>(positions)[at] : static_cast<const int*>(positions)[at];
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) rotary(const __grid_constant__ RotaryTurn p) {
    __shared__ Rotations<TABLE> rotations;
    int first = blockIdx.x * p.block, count = min(p.block, p.tokens - first), pairs = p.rotary.pairs;
    for (int i = threadIdx.x; i < count * pairs; i += THREADS) {
        int token = first + i / pairs;
        rotations.set(i, rotation(p.rotary, p.position(token / p.time, token % p.time), i % pairs));
    }
    __syncthreads();

    RotaryHead features{pairs, p.size};
    int units = features.units();
    for (int i = threadIdx.x; i < count * p.heads * units; i += THREADS) {
        int unit = i % units, head = i / units % p.heads, local = i / units / p.heads;
        int batch = (first + local) / p.time, t = (first + local) % p.time;
        const Element* from = static_cast<Element*>(p.x.data) + batch * p.x.batch + t * p.x.time + head * p.x.head;
        Element* to = static_cast<Element*>(p.y.data) + batch * p.y.batch + t * p.y.time + head * p.y.head;
        features.move(from, to, unit, rotations, local * pairs);
    }
}
