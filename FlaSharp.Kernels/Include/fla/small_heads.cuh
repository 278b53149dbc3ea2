// Gated linear attention of small heads, K and V up to 16: a warp has 16 tokens of a head in its registers and works alone.
//
// Every matrix of such a block is 16 x 16 or smaller, and a product with it an instruction or two. What a thread loads from
// global memory is at once what these instructions take: rows and columns of a matrix may come in any order that its partners
// share.
//   Row r of a matrix of tokens, r < 8, is token 2 r; row r + 8 the token after it. So each lane has two neighbouring tokens.
//   Columns 2 c, 2 c + 1 and, of the larger sizes, 2 c + 8, 2 c + 9 are the SIZE / 4 channels from c SIZE / 4 on: neighbours as
//   well.
#pragma once
#include "fla/gate_frame.cuh"
#include "fla/gla.cuh"

namespace fla {

constexpr int BLOCK_TOKENS = 16;

// What the kernels of the forward pass take.
struct GlaSmallForward {
    GlaShape shape;
    TensorView inputs[4]; // q, k, v, g
    TensorView o;
    const float* initial; // [sequences, H, K, V], or null for 0
    float* final;         // the same, or null
    float* states;        // for backward: the state every SAVED_EVERY tokens, [slots, H, StateElement::COUNT]; or null
    float scale;
};

// A thread block's part, a head of a sequence. There is a saved state every SAVED tokens.
template <int SAVED> struct GlaLine : GlaBlock<BLOCK_TOKENS, SAVED> {
    __device__ __forceinline__ GlaLine(const GlaShape& shape, u32 block)
        : GlaBlock<BLOCK_TOKENS, SAVED>(shape.sequences, block % (u32)shape.heads, block / (u32)shape.heads) {}

    // Where its state is among those of a call: computed wherever it is needed.
    __device__ __forceinline__ i64 state_offset(const GlaShape& shape) const {
        return ((i64)this->sequence.index * shape.heads + opaque(this->head)) * (shape.key_size * shape.value_size);
    }
    // Which of the saved states is that before block `n`.
    __device__ __forceinline__ i64 saved_state(const GlaShape& shape, int n) const {
        return this->slot(shape.sequences, n) * shape.heads + this->head;
    }
};

// A lane's rows of the block from token `first` on, its two tokens, beginning with its channels.
template <int SIZE, class T>
__device__ __forceinline__ Rows<T> lane_rows(const Sequence& sequence, const TensorView& view, int head, int first, int lane) {
    Rows<T> rows = sequence.rows<T>(view, head);
    return {rows[first + lane / 4 * 2] + lane % 4 * (SIZE / 4), rows.stride};
}

// The same of a later or earlier block: step by step, lest the compiler compute the addresses of many ahead.
template <class T> __device__ __forceinline__ void advance(Rows<T>& rows, int tokens) {
    rows.first = opaque_global(rows[tokens]);
}

// A lane's two tokens and SIZE / 4 channels of a block, as they are stored; 0 where there are none.
template <class T, int SIZE> struct TokenRows {
    static constexpr int CHANNELS = SIZE / 4, PAIRS = SIZE / 8, BYTES = CHANNELS * sizeof(T), WARP_BYTES = 64 * BYTES;
    typedef typename Pair<T>::Type Both;
    Both pair[2][PAIRS];

    // Reads them from lane_rows, of a block of `rows` tokens and `size` channels, of which VEC are known to be aligned together.
    template <int VEC> __device__ __forceinline__ void load(const Rows<T>& from, int rows, int size, int lane) {
        int col = lane % 4 * CHANNELS;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool there = lane / 4 * 2 + h < rows;
            const T* row = from[h];
            if constexpr (VEC >= 4 && PAIRS == 2) {
                if constexpr (sizeof(T) == 4) {
                    float4 x = there && col < size ? *reinterpret_cast<const float4*>(row) : make_float4(0.f, 0.f, 0.f, 0.f);
                    pair[h][0] = make_float2(x.x, x.y), pair[h][1] = make_float2(x.z, x.w);
                } else {
                    uint2 x = there && col < size ? *reinterpret_cast<const uint2*>(row) : make_uint2(0, 0);
                    pair[h][0] = x.x, pair[h][1] = x.y;
                }
            } else {
#pragma unroll
                for (int i = 0; i < PAIRS; i++) {
                    if constexpr (VEC >= 2) {
                        pair[h][i] = there && col + 2 * i < size ? reinterpret_cast<const Both*>(row)[i] : Both{};
                    } else {
                        T low = there && col + 2 * i < size ? row[2 * i] : T{};
                        T high = there && col + 2 * i + 1 < size ? row[2 * i + 1] : T{};
                        if constexpr (sizeof(T) == 4)
                            pair[h][i] = make_float2(low, high);
                        else
                            pair[h][i] = low.bits | (u32)high.bits << 16;
                    }
                }
            }
        }
    }

    // The same from shared memory, rows of even tokens before those of odd ones.
    __device__ __forceinline__ void load(u32 from, int lane) {
        from += lane * BYTES;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 address = from + h * (32 * BYTES);
            if constexpr (BYTES == 16) {
                float4 x = shared_load<float4>(address);
                pair[h][0] = make_float2(x.x, x.y), pair[h][1] = make_float2(x.z, x.w);
            } else if constexpr (PAIRS == 2) {
                uint2 x = shared_load<uint2>(address);
                pair[h][0] = x.x, pair[h][1] = x.y;
            } else {
                pair[h][0] = shared_load<Both>(address);
            }
        }
    }

    __device__ __forceinline__ float at(int h, int c) const {
        return c % 2 ? Pair<T>::high(pair[h][c / 2]) : Pair<T>::low(pair[h][c / 2]);
    }
};

// x(h, c) for a lane's tokens and channels to global memory, as TokenRows loads them.
template <int SIZE, int VEC, class T, class X>
__device__ __forceinline__ void store_tokens(const Rows<T>& to, int rows, int size, int lane, X x) {
    constexpr int CHANNELS = SIZE / 4;
    typedef typename Pair<T>::Type Both;
    int col = lane % 4 * CHANNELS;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        if (lane / 4 * 2 + h >= rows) continue;
        T* row = to[h];
        if constexpr (VEC >= 4 && CHANNELS == 4) {
            if (col >= size) continue;
            if constexpr (sizeof(T) == 4)
                *reinterpret_cast<float4*>(row) = make_float4(x(h, 0), x(h, 1), x(h, 2), x(h, 3));
            else
                *reinterpret_cast<uint2*>(row) = make_uint2(Pair<T>::pack(x(h, 0), x(h, 1)), Pair<T>::pack(x(h, 2), x(h, 3)));
        } else {
#pragma unroll
            for (int c = 0; c < CHANNELS; c += 2) {
                if constexpr (VEC >= 2) {
                    if (col + c < size) *reinterpret_cast<Both*>(row + c) = Pair<T>::pack(x(h, c), x(h, c + 1));
                } else {
                    if (col + c < size) row[c] = from_float<T>(x(h, c));
                    if (col + c + 1 < size) row[c + 1] = from_float<T>(x(h, c + 1));
                }
            }
        }
    }
}

// The inputs of a block's tokens.
template <class T, class G, int K, int V> struct Inputs {
    TokenRows<T, K> q, k;
    TokenRows<T, V> v;
    TokenRows<G, K> g;
    static constexpr int AT_K = TokenRows<T, K>::WARP_BYTES, AT_V = 2 * AT_K, AT_G = AT_V + TokenRows<T, V>::WARP_BYTES;
    static constexpr int WARP_BYTES = AT_G + TokenRows<G, K>::WARP_BYTES;

    template <int VEC, class Parameters>
    __device__ __forceinline__ void load(const Parameters& p, const Sequence& sequence, int head, int first, int rows, int lane) {
        int kv_head = head / p.shape.group, keys = p.shape.key_size, values = p.shape.value_size;
        g.template load<VEC>(lane_rows<K, G>(sequence, p.g, kv_head, first, lane), rows, keys, lane);
        k.template load<VEC>(lane_rows<K, T>(sequence, p.k, kv_head, first, lane), rows, keys, lane);
        q.template load<VEC>(lane_rows<K, T>(sequence, p.q, head, first, lane), rows, keys, lane);
        v.template load<VEC>(lane_rows<V, T>(sequence, p.v, kv_head, first, lane), rows, values, lane);
    }
    // What InputCopies has brought, once the warp's lanes have all waited for it.
    __device__ __forceinline__ void load(u32 from, int lane) {
        g.load(from + AT_G, lane), q.load(from, lane), k.load(from + AT_K, lane), v.load(from + AT_V, lane);
    }
};

// Copies of these inputs to a warp's shared memory, block after block. A lane has every eighth piece of q, k, v or g: VEC numbers
// of 16 bits each, as which float gates count twice.
template <int VEC, class T, class G, int K, int V> struct InputCopies {
    static constexpr int GATE = sizeof(G) / sizeof(T), WIDEST = V > GATE * K ? V : GATE * K, COPIES = 2 * WIDEST / VEC;
    typedef Inputs<T, G, K, V> Block;
    const u16* from; // the lane's first piece
    i64 stride;
    int token, column, width_bits, size; // where that lies, and how long rows are: in memory, and as far as they exist
    u32 to;

    // Of the block from token `first` on; `inputs` are the views of q, k, v and g.
    __device__ __forceinline__ InputCopies(const TensorView (&inputs)[4], const GlaShape& shape, const Sequence& sequence,
                                           int head, int first, u32 to, int lane) {
        int input = lane / 8, numbers = input == 3 ? GATE : 1;
        bool value = input == 2;
        width_bits = (value ? V : K) / 16 + 3 + numbers / 2;
        size = value ? shape.value_size : shape.key_size * numbers;
        place(lane % 8 * VEC, token, column);
        this->to = to + input * Block::AT_K + (input == 3 ? Block::AT_G - 3 * Block::AT_K : 0) + lane % 8 * (2 * VEC);

        const TensorView& view = inputs[input];
        u32 its_head = input == 0 || shape.group == 1 ? head : head / shape.group;
        i64 start = (u32)sequence.batch * view.batch + its_head * view.head;
        start += ((int)sequence.start + (first + token) * sequence.step) * view.time;
        from = static_cast<const u16*>(view.data) + start * numbers + column;
        stride = (sequence.step < 0 ? -view.time : view.time) * numbers;
    }

    // Where the number `i` of a block lies: rows of even tokens come before those of odd ones, as in a lane's registers.
    __device__ __forceinline__ void place(int i, int& token, int& column) const {
        int row = i >> width_bits;
        token = row % 8 * 2 + row / 8, column = i & ((1 << width_bits) - 1);
    }

    // Begins those of the next block, which has `tokens` tokens or more than it can.
    __device__ __forceinline__ void next(int tokens) {
#pragma unroll V == GATE * K && COPIES <= 4 ? COPIES : 1
        for (int i = 0; i < COPIES; i++) {
            int more_tokens, more_columns;
            place(i * (8 * VEC), more_tokens, more_columns);
            bool there = token + more_tokens < tokens && column + more_columns < size;
            const u16* piece = from + more_tokens * stride + more_columns;
            if (i * (8 * VEC) >> width_bits >= BLOCK_TOKENS) break; // rows of other inputs are longer
            if constexpr (VEC > 1)
                copy_async<2 * VEC>(to + i * (16 * VEC), piece, there);
            else
                shared_store(to + i * (16 * VEC), there ? *piece : (u16)0);
        }
        from += BLOCK_TOKENS * stride, to += Block::WARP_BYTES;
    }

    // Goes on `blocks` blocks later, and `bytes` further back in shared memory.
    __device__ __forceinline__ void skip(int blocks, int bytes) { from += blocks * BLOCK_TOKENS * stride, to -= bytes; }
};

// A matrix of up to 16 x 16 bfloat16 numbers as a product takes it: of[h + 2 i] is that of row half h and column half i.
struct Operand {
    u32 of[4];
};

// A product, or a sum of products: of[i] has column half i, its elements 2 h and 2 h + 1 row half h.
struct Product {
    float of[2][4];

    __device__ __forceinline__ float& at(int h, int c) { return of[c / 2][2 * h + c % 2]; }
    __device__ __forceinline__ float at(int h, int c) const { return of[c / 2][2 * h + c % 2]; }
};

// d += a b^T, with b's rows, ROWS or fewer, becoming columns; both have COLS columns.
template <int ROWS, int COLS = 16, class T = bf16>
__device__ __forceinline__ void multiply(Product& d, const Operand& a, const Operand& b) {
#pragma unroll
    for (int i = 0; i < ROWS / 8; i++) {
        if constexpr (COLS == 8)
            mma_m16n8k8<T>(d.of[i], {a.of[0], a.of[1]}, b.of[i]);
        else
            mma_m16n8k16<T>(d.of[i], a.of, b.of[i], b.of[i + 2]);
    }
}

// Of a matrix with COLS columns.
template <int COLS> __device__ __forceinline__ Operand transpose(const Operand& x) {
    Operand y{};
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < COLS / 8; i++) y.of[i + 2 * h] = transpose_8x8(x.of[h + 2 * i]);
    return y;
}

// Tokens as an operand.
template <class T, int SIZE> __device__ __forceinline__ Operand operand(const TokenRows<T, SIZE>& x) {
    Operand y{};
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < SIZE / 8; i++) {
            if constexpr (same<T, bf16>())
                y.of[h + 2 * i] = x.pair[h][i];
            else
                y.of[h + 2 * i] = Pair<bf16>::pack(Pair<T>::low(x.pair[h][i]), Pair<T>::high(x.pair[h][i]));
        }
    return y;
}

// f(h, c) for each of a lane's tokens and channels, as an operand.
template <int SIZE, class F> __device__ __forceinline__ Operand operand_of(F f) {
    Operand y{};
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int i = 0; i < SIZE / 8; i++) y.of[h + 2 * i] = Pair<bf16>::pack(f(h, 2 * i), f(h, 2 * i + 1));
    return y;
}

// A product as an operand.
template <int COLS> __device__ __forceinline__ Operand operand(const Product& x) {
    return operand_of<COLS>([&](int h, int c) { return x.at(h, c); });
}

// A number of an operand again.
__device__ __forceinline__ float number(const Operand& x, int h, int c) {
    u32 pair = x.of[h + 2 * (c / 2)];
    return c % 2 ? Pair<bf16>::high(pair) : Pair<bf16>::low(pair);
}

// Products between the tokens of a block: which two an element (h, c) of a lane is of.
__device__ __forceinline__ int pair_row(int lane, int h) { return lane / 4 * 2 + h; }
__device__ __forceinline__ int pair_column(int lane, int c) { return lane % 4 * 4 + c % 2 * 2 + c / 2; }

// Those with keep(row, column) as an operand.
template <class Keep> __device__ __forceinline__ Operand kept(const Product& x, int lane, Keep keep) {
    return operand_of<BLOCK_TOKENS>([&](int h, int c) {
        return keep(pair_row(lane, h), pair_column(lane, c)) ? x.at(h, c) : 0.f;
    });
}

// Masks for pairs in an operand: those of a token with itself and earlier ones.
__device__ __forceinline__ Operand causal_mask(int lane) {
    Operand mask;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        int row = pair_row(lane, i % 2), column = pair_column(lane, i / 2 * 2);
        mask.of[i] = opaque((column <= row ? 0xffff : 0) | (column + 2 <= row ? 0xffff0000 : 0));
    }
    return mask;
}
__device__ __forceinline__ Operand masked(Operand x, const Operand& mask) {
#pragma unroll
    for (int i = 0; i < 4; i++) x.of[i] &= mask.of[i];
    return x;
}

// What a product with a block's log-decays adds up: those between each token and the middle of the block, and those of its
// halves, one in each row half. S is the type of the log-decays, in which 1 and -1 are exact.
template <class S> struct GateSums {
    Operand from_middle, halves;

    __device__ __forceinline__ explicit GateSums(int lane) {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int i = 0; i < 2; i++) {
                auto sign = [&](int c) {
                    int token = pair_row(lane, h), other = pair_column(lane, c);
                    return other < BLOCK_TOKENS / 2 ? (other > token ? -1.f : 0.f) : (other <= token ? 1.f : 0.f);
                };
                from_middle.of[h + 2 * i] = Pair<S>::pack(sign(2 * i), sign(2 * i + 1));
                float in_half = pair_column(lane, 0) / (BLOCK_TOKENS / 2) == h;
                halves.of[h + 2 * i] = Pair<S>::pack(in_half, in_half);
            }
    }
};
// Floats are sums of two such numbers, to 2^-17.
template <> struct GateSums<float> : GateSums<bf16> { using GateSums<bf16>::GateSums; };

// MIN_LOG_DECAY twice.
template <class G> constexpr u32 MIN_LOG_DECAY_PAIR = same<G, bf16>() ? 0xc2d0c2d0u : 0xd680d680u;

// The decays of a block, which tokens beyond the end leave as they are. A lane has its two tokens and its channels.
template <int K> struct BlockGates {
    static constexpr int CHANNELS = K / 4;
    float away[2][CHANNELS];                        // sums of log-decays from the block's middle on
    float start_half[CHANNELS], end_half[CHANNELS]; // of its halves
    bool strong;                                    // too strong for a frame
    u32 limited = 0;                                // of which numbers: these have no gradient

    template <class G>
    __device__ __forceinline__ BlockGates(const GateSums<G>& sums, const TokenRows<G, K>& g, int lane) {
        Product from_middle{}, halves{};
        if constexpr (same<G, float>()) {
            auto limit = [&](int h, int c) { return max_nan(g.at(h, c), MIN_LOG_DECAY); };
            Operand high = operand_of<K>(limit);
            Operand low = transpose<K>(operand_of<K>([&](int h, int c) { return limit(h, c) - number(high, h, c); }));
            high = transpose<K>(high);
            multiply<K>(from_middle, sums.from_middle, low), multiply<K>(halves, sums.halves, low);
            multiply<K>(from_middle, sums.from_middle, high), multiply<K>(halves, sums.halves, high);
        } else {
            Operand limited{};
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int i = 0; i < K / 8; i++) limited.of[h + 2 * i] = max_nan_pair<G>(g.pair[h][i], MIN_LOG_DECAY_PAIR<G>);
            limited = transpose<K>(limited);
            multiply<K, BLOCK_TOKENS, G>(from_middle, sums.from_middle, limited);
            multiply<K, BLOCK_TOKENS, G>(halves, sums.halves, limited);
        }
        bool out = false;
#pragma unroll
        for (int c = 0; c < CHANNELS; c++) {
            start_half[c] = halves.at(0, c) * LOG2E, end_half[c] = halves.at(1, c) * LOG2E;
#pragma unroll
            for (int h = 0; h < 2; h++) {
                away[h][c] = from_middle.at(h, c) * LOG2E;
                out |= fabsf(away[h][c]) > MAX_FRAME;
                limited |= (u32)(g.at(h, c) * LOG2E < MIN_LOG2_DECAY) << (2 * c + h);
            }
            out |= start_half[c] < -MAX_FACTOR; // the state before the block would be lost on the way to the middle
        }
        strong = __any_sync(~0u, out);
    }

    __device__ __forceinline__ bool is_limited(int h, int c) const { return limited >> (2 * c + h) & 1; }

    // Where scaled queries and keys have the factor 1: in the middle, or at the edges.
    // Queries and keys have the factor 1 in the middle, or at the edges.
    __device__ __forceinline__ float query_decay(int h, int c) const { return pow2(away[h][c] + (strong ? start_half[c] : 0.f)); }
    __device__ __forceinline__ float key_decay(int h, int c) const { return pow2((strong ? end_half[c] : 0.f) - away[h][c]); }
    // From the block's start to the queries' origin, and from the keys' origin to its end.
    __device__ __forceinline__ float start(int c) const { return pow2(strong ? 0.f : start_half[c]); }
    __device__ __forceinline__ float rest(int c) const { return pow2(strong ? 0.f : end_half[c]); }
    // From the one origin to the other.
    __device__ __forceinline__ float between(int c) const { return strong ? pow2(sum(c)) : 1.f; }
    // Of the block's log-decays.
    __device__ __forceinline__ float sum(int c) const { return start_half[c] + end_half[c]; }

    // Lets the compiler compute decays once more, instead of keeping them all from here on.
    __device__ __forceinline__ void forget() {
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int c = 0; c < CHANNELS; c++) away[h][c] = __int_as_float(opaque(__float_as_int(away[h][c])));
    }

    // At a level of binary splitting (see gate_frame.cuh), in blocks of 2 * half: the sum from the middle to the
    // border between the halves. Tokens in the second half are queries.
    __device__ __forceinline__ float border(int lane, int half, int c) const {
        int last = (lane / 4 * 2 & ~(2 * half - 1)) + half - 1; // of the first half
        float far = __shfl_sync(~0u, away[1][c], last / 2 * 4 + lane % 4);
        return half == 1 ? away[0][c] : far;
    }
    static __device__ __forceinline__ bool is_query(int lane, int h, int half) { return (lane / 4 * 2 + h) & half; }
};

// Whether two tokens of a block are apart at a level of binary splitting.
__device__ __forceinline__ bool tokens_apart(int i, int j, int half) { return (i ^ j) / half == 1; }

// Sums over channels of x y for a lane's two tokens, which four lanes share.
template <int SIZE, class X, class Y> __device__ __forceinline__ void dot_tokens(float (&sums)[2], const X& x, const Y& y) {
#pragma unroll
    for (int h = 0; h < 2; h++) {
        sums[h] = 0.f;
#pragma unroll
        for (int c = 0; c < SIZE / 4; c++) sums[h] += x.at(h, c) * y.at(h, c);
        sums[h] += __shfl_xor_sync(~0u, sums[h], 1);
        sums[h] += __shfl_xor_sync(~0u, sums[h], 2);
    }
}

// The operand of a level of binary splitting.
template <class T, int K>
__device__ __forceinline__ Operand split_operand(const BlockGates<K>& gates, const TokenRows<T, K>& q, const TokenRows<T, K>& k,
                                                 float scale, int half, int lane) {
    Operand x{};
#pragma unroll
    for (int i = 0; i < K / 8; i++) {
        float border[2] = {gates.border(lane, half, 2 * i), gates.border(lane, half, 2 * i + 1)};
#pragma unroll
        for (int h = 0; h < 2; h++) {
            bool query = gates.is_query(lane, h, half);
            auto pair = query ? q.pair[h][i] : k.pair[h][i];
            auto decay = [&](int c) {
                float away = gates.away[h][2 * i + c] - border[c];
                return pow2(query ? away : -away) * (query ? scale : 1.f);
            };
            x.of[h + 2 * i] = Pair<bf16>::pack(Pair<T>::low(pair) * decay(0), Pair<T>::high(pair) * decay(1));
        }
    }
    return x;
}

// The products of queries and keys that decay from the one to the other, however strongly; rows and columns may be either.
template <class T, int K>
__device__ __forceinline__ Product split_pairs(const BlockGates<K>& gates, const TokenRows<T, K>& q, const TokenRows<T, K>& k,
                                               float scale, int lane) {
    Product pairs{};
    float diagonal[2];
    dot_tokens<K>(diagonal, q, k);
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int c = 0; c < 4; c++)
            if (pair_row(lane, h) == pair_column(lane, c)) pairs.at(h, c) = diagonal[h] * scale;
#pragma unroll 1
    for (int half = BLOCK_TOKENS / 2; half > 0; half /= 2) {
        Operand x = split_operand(gates, q, k, scale, half, lane);
        Product level{};
        multiply<BLOCK_TOKENS>(level, x, x);
#pragma unroll
        for (int h = 0; h < 2; h++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (tokens_apart(pair_row(lane, h), pair_column(lane, c), half)) pairs.at(h, c) = level.at(h, c);
    }
    return pairs;
}

// A state transposed, [V x K], lies in a product's elements: rows are value channels in their columns' order. Which key and value
// channel element `e` of all is, counted lane by lane, a column half after the other.
template <int K, int V> struct StateElement {
    static constexpr int COUNT = K / 8 * 128;
    int key, value;
    bool exists;

    __device__ __forceinline__ StateElement(int e, int keys, int values) {
        int lane = e / 4 % 32, row = lane / 4, high = e / 2 % 2;
        key = lane % 4 * (K / 4) + e / 128 * 2 + e % 2;
        value = row / 2 * (V / 4) + high * 2 + row % 2;
        exists = e < COUNT && key < keys && value < values && (V > 8 || !high);
    }
    __device__ __forceinline__ int place(int values) const { return key * values + value; }
};

// A state's elements in this order.
template <int K> __device__ __forceinline__ void store_state(float* to, const Product& x, int lane) {
#pragma unroll
    for (int i = 0; i < K / 8; i++)
        *reinterpret_cast<float4*>(&to[i * 128 + lane * 4]) = make_float4(x.of[i][0], x.of[i][1], x.of[i][2], x.of[i][3]);
}
template <int K> __device__ __forceinline__ Product load_state(const float* from, int lane) {
    Product x{};
#pragma unroll
    for (int i = 0; i < K / 8; i++) {
        float4 part = *reinterpret_cast<const float4*>(&from[i * 128 + lane * 4]);
        x.of[i][0] = part.x, x.of[i][1] = part.y, x.of[i][2] = part.z, x.of[i][3] = part.w;
    }
    return x;
}

// A state times a factor for each of a lane's key channels.
template <int K, int V, class Factor> __device__ __forceinline__ Product scaled(const Product& x, Factor factor) {
    Product y{};
#pragma unroll
    for (int h = 0; h < V / 8; h++)
#pragma unroll
        for (int c = 0; c < K / 4; c++) y.at(h, c) = x.at(h, c) * factor(c);
    return y;
}

// The state after tokens: what it was, decayed, and what they add to it.
template <int K, int V, class Factor>
__device__ __forceinline__ void advance(Product& state, Factor decay, const Product& added) {
#pragma unroll
    for (int h = 0; h < V / 8; h++)
#pragma unroll
        for (int c = 0; c < K / 4; c++) state.at(h, c) = state.at(h, c) * decay(c) + added.at(h, c);
}

} // namespace fla
