// Softmax attention of a few queries over the keys of a cache, for a run of keys: fla/attention_decode.cuh. Each warp takes 16
// keys at a time straight from global memory into the left operands of its products; the queries are their 8 columns. A product
// may sum in any order that is the same for both operands, so a thread's 16 bytes of a key serve as they lie.
#include "fla/attention_decode.cuh"
#include "fla/vector.cuh"

using namespace fla;

constexpr int THREADS = 32 * WARPS, TILES = ROWS / 8; // columns of 8 rows
constexpr int KEYS = 16, PIECE = 8;                   // keys of a warp at a time; features that a thread reads at once
// Whether the registers hold the next keys beside a step's values.
constexpr bool AHEAD = 8 * KEY_CHUNKS + 16 * VALUE_CHUNKS + TILES * (4 * KEY_CHUNKS + 16 * VALUE_CHUNKS) <= 160;

struct AttentionDecode {
    DecodeShape shape;
    TensorView q, o;         // [B, T, H, *], or packed
    TensorView keys, values; // [B, capacity, kv_heads, *]: a row's key i lies at place i % capacity
    int capacity, key_size;
    float scale, softcap;    // softcap 0 for none
    const float* slopes;     // [H], or null
    float* parts;            // [.., splits, ROWS, value_size]: sums of weighted values, where there are several runs
    float2* weights;         // [.., splits, ROWS]: the largest score, in log2, and the sum of the weights
};

typedef Vector<Element, PIECE> Piece;

// Features `col` to `col` + 7 of a row of `size`, zeros for those that do not exist.
__device__ __forceinline__ void load_piece(Piece& piece, const Element* row, int col, int size, bool exists) {
    if constexpr (VECTOR == PIECE) {
        if (exists && col < size)
            piece.load(row + col);
        else
            piece.clear();
    } else {
#pragma unroll 1 // all at once would need too many registers
        for (int i = 0; i < PIECE; i += 2) {
#pragma unroll
            for (int w = 0; w < 3; w++) piece.words[w] = piece.words[w + 1];
            u32 low = exists && col + i < size ? row[col + i].bits : 0;
            u32 high = exists && col + i + 1 < size ? row[col + i + 1].bits : 0;
            piece.words[3] = high << 16 | low;
        }
    }
}

// A run's keys, or its values.
struct CacheRun {
    const Element* data; // of the row and head
    i64 step;            // from a place to the next
    int first, count, capacity, size; // first: the run's first place

    __device__ __forceinline__ CacheRun(const TensorView& view, const DecodePlace& place, int key, int count, int capacity,
                                        int size)
        : data(static_cast<const Element*>(view.data) + place.sequence.index * view.batch + place.kv_head * view.head),
          step(view.time), first(key % capacity), count(count), capacity(capacity), size(size) {}

    __device__ __forceinline__ void load(Piece& piece, int key, int col) const {
        int there = first + key;
        if (there >= capacity) there -= capacity;
        load_piece(piece, data + there * step, col, size, key < count);
    }
};

// 16 keys: a thread has those of rows lane / 4 and + 8, and of each 32 features its 8.
struct Keys {
    Piece pieces[KEY_CHUNKS][2];

    __device__ __forceinline__ void load(const CacheRun& run, int key, int lane) {
#pragma unroll
        for (int c = 0; c < KEY_CHUNKS; c++)
#pragma unroll
            for (int h = 0; h < 2; h++) run.load(pieces[c][h], key + lane / 4 + 8 * h, 32 * c + lane % 4 * PIECE);
    }
    // The products with 8 queries: (key lane / 4, queries 2 (lane % 4) and + 1), the same of key + 8.
    __device__ __forceinline__ void multiply(float (&scores)[4], const Piece (&queries)[KEY_CHUNKS]) const {
#pragma unroll
        for (int c = 0; c < KEY_CHUNKS; c++)
#pragma unroll
            for (int s = 0; s < 4; s += 2) {
                const u32(&low)[4] = pieces[c][0].words, (&high)[4] = pieces[c][1].words;
                const u32 a[4] = {low[s], high[s], low[s + 1], high[s + 1]};
                mma_m16n8k16<Element>(scores, a, queries[c].words[s], queries[c].words[s + 1]);
            }
    }
};

// Their values: a thread has those of keys 2 (lane % 4), + 1, + 8 and + 9, and of each 64 features its 8.
struct Values {
    Piece pieces[VALUE_CHUNKS][4];

    __device__ __forceinline__ void load(const CacheRun& run, int key, int lane) {
#pragma unroll
        for (int c = 0; c < VALUE_CHUNKS; c++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                run.load(pieces[c][i], key + lane % 4 * 2 + i % 2 + i / 2 * 8, 64 * c + lane / 4 * PIECE);
    }
    // A left operand: features 2 pair and 2 pair + 1 of all threads' 8 as rows, the keys as what is summed over.
    __device__ __forceinline__ void operand(u32 (&a)[4], int chunk, int pair) const {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            u32 first = pieces[chunk][2 * h].words[pair], second = pieces[chunk][2 * h + 1].words[pair];
            a[2 * h] = __byte_perm(first, second, 0x5410);
            a[2 * h + 1] = __byte_perm(first, second, 0x7632);
        }
    }
};

// What a warp has of 8 rows. In each thread: of rows 2 (lane % 4) and + 1 the largest score, its part of the sum of weights, and
// of each 64 features its 8.
struct Sums {
    float max[2] = {-infinity(), -infinity()}, weight[2] = {}, values[VALUE_CHUNKS][4][4] = {};

    __device__ __forceinline__ void scale(const float (&factors)[2]) {
#pragma unroll
        for (auto& chunk : values)
#pragma unroll
            for (auto& pair : chunk)
#pragma unroll
                for (int e = 0; e < 4; e++) pair[e] *= factors[e % 2];
#pragma unroll
        for (int r = 0; r < 2; r++) weight[r] *= factors[r];
    }
    // Turns scores into weights, as a right operand.
    __device__ __forceinline__ void add(u32 (&b)[2], float (&scores)[4]) {
        float factors[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float largest = fmaxf(fmaxf(scores[r], scores[r + 2]), max[r]);
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2)
                largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, distance));
            factors[r] = pow2(max[r] - finite_max(largest));
            max[r] = largest;
        }
        if (__any_sync(0xffffffffu, factors[0] != 1.f || factors[1] != 1.f)) scale(factors);
#pragma unroll
        for (int e = 0; e < 4; e++) {
            scores[e] = pow2(scores[e] - finite_max(max[e % 2]));
            weight[e % 2] += scores[e];
        }
#pragma unroll
        for (int h = 0; h < 2; h++) b[h] = transpose_8x8(Pair<Element>::pack(scores[2 * h], scores[2 * h + 1]));
    }
    __device__ __forceinline__ void add(const Values& v, const u32 (&b)[2]) {
#pragma unroll
        for (int c = 0; c < VALUE_CHUNKS; c++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                u32 a[4];
                v.operand(a, c, pair);
                mma_m16n8k16<Element>(values[c][pair], a, b[0], b[1]);
            }
    }
};

// How the scores of one of a thread's rows are made.
struct Scores {
    int position; // of the row's query; below all keys where there is none
    float slope;

    __device__ __forceinline__ float map(float product, int key, int count, int at, const AttentionDecode& p) const {
        int distance = position - at;
        bool seen = key < count && distance >= 0 && (p.shape.window == 0 || distance < p.shape.window);
        float score = product * p.scale;
        if (p.softcap != 0.f) score = p.softcap * tanhf(score / p.softcap);
        return seen ? (score - slope * distance) * LOG2E : -infinity();
    }
};

struct Shared {
    float2 weights[WARPS][ROWS]; // the largest score and the sum of weights
    float values[WARPS][ROWS][64 * VALUE_CHUNKS];
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS) attention_decode(const __grid_constant__ AttentionDecode p) {
    follow_stream();
    __shared__ Shared shared;
    const DecodeShape& shape = p.shape;
    int block = blockIdx.x, kv_head = block % shape.kv_heads;
    block /= shape.kv_heads;
    int tile = block % shape.tiles;
    block /= shape.tiles;
    int split = block % shape.splits, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    DecodePlace place(shape, block / shape.splits, tile, kv_head);
    if (!DecodeRow(shape, place, 0).exists || (shape.splits > 1 && split >= place.runs(shape))) return;

    int first = place.first + split * shape.run, count = min(shape.run, place.length - first);
    CacheRun key_run(p.keys, place, first, count, p.capacity, p.key_size);
    CacheRun value_run(p.values, place, first, count, p.capacity, shape.value_size);
    Piece queries[TILES][KEY_CHUNKS];
    Scores rows[TILES][2];
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        DecodeRow row(shape, place, t * 8 + lane / 4);
        const Element* q = place.sequence.rows<const Element>(p.q, row.head)[row.query];
#pragma unroll
        for (int c = 0; c < KEY_CHUNKS; c++) load_piece(queries[t][c], q, 32 * c + lane % 4 * PIECE, p.key_size, row.exists);
#pragma unroll
        for (int r = 0; r < 2; r++) {
            DecodeRow row(shape, place, t * 8 + lane % 4 * 2 + r);
            rows[t][r] = {row.exists ? place.length - place.sequence.length + row.query : -1,
                          p.slopes && row.exists ? p.slopes[row.head] : 0.f};
        }
    }

    Sums sums[TILES];
    Keys keys;
    int key = warp * KEYS;
    if (AHEAD && key < count) keys.load(key_run, key, lane);
    for (; key < count; key += WARPS * KEYS) {
        Values values;
        if (AHEAD)
            values.load(value_run, key, lane);
        else
            keys.load(key_run, key, lane);
        float scores[TILES][4] = {};
#pragma unroll
        for (int t = 0; t < TILES; t++) keys.multiply(scores[t], queries[t]);
        if (AHEAD)
            keys.load(key_run, key + WARPS * KEYS, lane); // in the background of what follows
        else
            values.load(value_run, key, lane);
        u32 weights[TILES][2];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int there = key + lane / 4 + e / 2 * 8;
                scores[t][e] = rows[t][e % 2].map(scores[t][e], there, count, first + there, p);
            }
            sums[t].add(weights[t], scores[t]);
        }
#pragma unroll
        for (int t = 0; t < TILES; t++) sums[t].add(values, weights[t]);
    }

    // The warps' results by the largest score of all.
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float& weight = sums[t].weight[r];
#pragma unroll
            for (int distance = 4; distance < 32; distance *= 2) weight += __shfl_xor_sync(0xffffffffu, weight, distance);
            if (lane < 4) shared.weights[warp][t * 8 + lane * 2 + r] = make_float2(sums[t].max[r], weight);
        }
    __syncthreads();
    auto total = [&](int row) {
        float2 total = make_float2(-infinity(), 0.f);
#pragma unroll
        for (int w = 0; w < WARPS; w++) total.x = fmaxf(total.x, shared.weights[w][row].x);
#pragma unroll
        for (int w = 0; w < WARPS; w++)
            total.y += shared.weights[w][row].y * pow2(shared.weights[w][row].x - finite_max(total.x));
        return total;
    };
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        float factors[2];
#pragma unroll
        for (int r = 0; r < 2; r++)
            factors[r] = pow2(sums[t].max[r] - finite_max(total(t * 8 + lane % 4 * 2 + r).x));
        sums[t].scale(factors);
#pragma unroll
        for (int c = 0; c < VALUE_CHUNKS; c++)
#pragma unroll
            for (int pair = 0; pair < 4; pair++)
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    float* there = &shared.values[warp][t * 8 + lane % 4 * 2 + r][64 * c + lane / 4 * PIECE + 2 * pair];
                    const float(&value)[4] = sums[t].values[c][pair];
                    *reinterpret_cast<float2*>(there) = make_float2(value[r], value[r + 2]);
                }
    }
    __syncthreads();

    i64 part = place.part(shape, split) * ROWS;
    for (int r = 0; r < ROWS; r++) {
        DecodeRow row(shape, place, r);
        if (!row.exists) break;
        float2 weight = total(r);
        if (shape.splits > 1 && threadIdx.x == 0) p.weights[part + r] = weight;
        float sink = shape.sinks ? shape.sinks[row.head] * LOG2E : -infinity(), largest = fmaxf(weight.x, sink);
        float factor = pow2(weight.x - finite_max(largest));
        factor *= inverse(weight.y * factor + pow2(sink - finite_max(largest)));
        for (int c = threadIdx.x; c < shape.value_size; c += THREADS) {
            float sum = 0;
#pragma unroll
            for (int w = 0; w < WARPS; w++) sum += shared.values[w][r][c];
            if (shape.splits > 1)
                p.parts[(part + r) * shape.value_size + c] = sum;
            else
                place.sequence.rows<Element>(p.o, row.head)[row.query][c] = from_float<Element>(sum * factor);
        }
    }
}
