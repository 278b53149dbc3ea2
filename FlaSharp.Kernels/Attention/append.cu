// Appends tokens to a cache of keys and values: turns their queries and keys by their positions (fla/rotary.cuh), and writes keys
// and values behind those of their row.
#include "fla/rotary.cuh"

using namespace fla;

constexpr int THREADS = 128;

struct AttentionAppend {
    TensorView q, turned;    // [B, T, heads, key_size], or packed; both the default where nothing turns
    TensorView k, v;         // [B, T, kv_heads, *], or packed
    TensorView keys, values; // [B, capacity, kv_heads, *]: a row's token i lies at place i % capacity
    Sequences tokens;        // the new ones of each row
    const int* lengths;      // [B], of each row before
    const int* bases;        // [B], the position of each row's token 0, or null for 0
    int* new_lengths;        // [B], of each row afterwards
    int capacity, heads, kv_heads, key_size, value_size;
    Rotary rotary;
};

extern "C" __global__ void __launch_bounds__(THREADS) attention_append(const __grid_constant__ AttentionAppend p) {
    __shared__ Rotations<MAX_PAIRS> rotations;
    int t = blockIdx.x % p.tokens.length, row = blockIdx.x / p.tokens.length, pairs = p.rotary.pairs;
    Sequence sequence(p.tokens, row);
    int length = p.lengths[row], place = (length + t) % p.capacity;
    if (t == 0 && blockIdx.y == 0 && threadIdx.x == 0) p.new_lengths[row] = length + sequence.length;
    if (t >= sequence.length) return;
    for (int i = threadIdx.x; i < pairs; i += THREADS)
        rotations.set(i, rotation(p.rotary, (p.bases ? p.bases[row] : 0) + (i64)length + t, i));
    __syncthreads();

    RotaryHead turning{pairs, p.key_size}, plain{0, p.value_size};
    int heads = p.q.data ? p.heads : 0, key_units = turning.units(), value_units = plain.units();
    int queries = heads * key_units, keys = queries + p.kv_heads * key_units, units = keys + p.kv_heads * value_units;
    auto move = [&](const RotaryHead& features, const TensorView& source, const TensorView& target, int unit, bool is_cached) {
        int head = unit / features.units();
        const Element* from = sequence.rows<const Element>(source, head)[t];
        Element* to = sequence.rows<Element>(target, head)[t];
        if (is_cached) to = static_cast<Element*>(target.data) + row * target.batch + place * target.time + head * target.head;
        features.move(from, to, unit % features.units(), rotations, 0);
    };
    for (int unit = blockIdx.y * THREADS + threadIdx.x; unit < units; unit += gridDim.y * THREADS) {
        if (unit < queries)
            move(turning, p.q, p.turned, unit, false);
        else if (unit < keys)
            move(turning, p.k, p.keys, unit - queries, true);
        else
            move(plain, p.v, p.values, unit - keys, true);
    }
}
